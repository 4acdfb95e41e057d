"""What can be seen of the episodes: the last ones that ended, the failures, a point for each rollout."""

import time
from collections import OrderedDict, deque
from typing import Any

from trl_ext.agents.trajectory import Trajectory, content_text
from trl_ext.serving.ledger import Ticket
from trl_ext.serving.replies import EpisodeView, Failure, FinishedEpisode, Point, RunningEpisode, Turn

FINISHED, FAILURES, VIEWS, POINTS = 50, 20, 200, 2000
_SHARED = set(FinishedEpisode.model_fields) & set(EpisodeView.model_fields) - {"row", "turns"}
_TEXT, _TURNS, _ROW = 20_000, 500, 120  # characters of a message and messages of an episode, characters of a row


class Board:
    """Bounded lists of what was: it does not grow with the run."""

    def __init__(self) -> None:
        self.finished: deque[FinishedEpisode] = deque(maxlen=FINISHED)
        self.failures: deque[Failure] = deque(maxlen=FAILURES)
        self.series: deque[Point] = deque(maxlen=POINTS)
        self._views: OrderedDict[str, EpisodeView] = OrderedDict()

    def find(self, id: str) -> EpisodeView | None:
        return self._views.get(id)

    def add(self, ticket: Ticket, trajectory: Trajectory, seconds: float) -> None:
        """An episode that ended."""
        view = view_of(ticket, trajectory, seconds)
        self._views[ticket.id] = view
        if len(self._views) > VIEWS:
            self._views.popitem(last=False)
        shared = view.model_dump(include=_SHARED)
        row = row_summary(ticket.row)
        self.finished.appendleft(FinishedEpisode(**shared, row=row, turns=trajectory.turns, ended=time.time()))
        if ticket.state == "failed":
            error = trajectory.failure or ticket.failure or ""
            self.failures.appendleft(Failure(id=ticket.id, worker=ticket.player, error=error, at=time.time()))


def view_of(ticket: Ticket, trajectory: Trajectory, seconds: float) -> EpisodeView:
    """An episode turn by turn, as far as it has come."""
    turns, rewards = [], iter(list(trajectory.rewards))
    for message in list(trajectory.messages)[:_TURNS]:
        role, text = str(message["role"]), _printable(content_text(message))
        turns.append(Turn(role=role, text=text[:_TEXT], reward=next(rewards, None) if role == "assistant" else None))
    return EpisodeView(
        id=ticket.id,
        state=ticket.state,
        environment=ticket.environment,
        row=ticket.row,
        worker=ticket.player,
        attempts=ticket.attempt,
        step=ticket.version,
        turns=turns,
        reward=None if ticket.open else trajectory.reward,
        success=trajectory.success,
        truncated=trajectory.truncated,
        failure=trajectory.failure,
        metrics=trajectory.metrics,
        seconds=seconds,
    )


def running_view(ticket: Ticket, age: float) -> RunningEpisode:
    return RunningEpisode(
        id=ticket.id,
        environment=ticket.environment,
        row=row_summary(ticket.row),
        worker=ticket.player,
        attempt=ticket.attempt,
        turn=ticket.turn,
        waits_for=ticket.waits_for,
        age=age,
    )


def row_summary(row: dict[str, Any]) -> str:
    text = "  ".join(f"{name}={value!r:.60}" for name, value in row.items() if value not in ("", None))
    return text if len(text) <= _ROW else text[: _ROW - 3] + "..."


def _printable(text: str) -> str:
    """Without lone surrogates, which no reply can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")
