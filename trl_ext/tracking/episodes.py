"""The newest episodes of a run, for the trackers that want more than means: as rows of tables, and action by action."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from trl_ext.errors import ConfigError


@dataclass(frozen=True)
class Played:
    """An episode (a `trl_ext.agents.trajectory.Trajectory`) of the "train" or the "eval" split."""

    split: str
    trajectory: Any


@dataclass(frozen=True)
class Action:
    """A turn: what the model wrote and what the environment made of it, from `began` for so many `seconds`.

    `reward` is None for a turn that the environment never answered, `began` and `seconds` where it was not called.
    """

    turn: int
    reply: str
    answer: str
    reward: float | None
    began: float | None
    seconds: float | None


class EpisodeTracker(TrainerCallback, ABC):
    """Keeps the newest episodes of the main process, and writes them whenever the trainer logs.

    It is a callback of a trainer and a recorder of `environment_rollout`, so it is given to both:

    ```python
    tracker = WandbEpisodes()
    trainer = CISPOTrainer(..., rollout_func=environment_rollout(MyEnvironment, recorder=tracker), callbacks=[tracker])
    ```

    Args:
        episodes: how many of the newest are written at each log, so that a long run does not grow without bound.
    """

    def __init__(self, episodes: int = 64):
        if episodes < 1:
            raise ConfigError(f"episodes = {episodes}: must be at least 1")
        self._newest: deque[Played] = deque(maxlen=episodes)

    def __call__(self, trajectories: Sequence[Any], split: str, process: int = 0) -> None:
        """Take a batch of episodes that were played."""
        if process == 0:
            self._newest.extend(Played(split, trajectory) for trajectory in trajectories)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._newest:
            newest = list(self._newest)
            self._newest.clear()
            self.write(newest, state.global_step)

    @abstractmethod
    def write(self, episodes: list[Played], step: int) -> None:
        """Write the episodes that were played since the last log, or the newest of them."""


def actions(trajectory: Any) -> Iterator[Action]:
    """The turns of an episode, with one that it was cut off in or that failed."""
    rewards, calls = trajectory.rewards, list(zip(trajectory.called_at, trajectory.called_for, strict=True))
    for turn, (reply, answer) in enumerate(trajectory.exchanges()):
        began, seconds = calls[turn + 1] if turn + 1 < len(calls) else (None, None)  # the first call is the reset
        yield Action(turn + 1, reply, answer, rewards[turn] if turn < len(rewards) else None, began, seconds)


def episode_rows(episodes: Sequence[Played], most_text: int) -> list[dict[str, Any]]:
    """A row for each episode. Texts are cut to `most_text` characters."""
    return [
        {
            **_place(number, one),
            "task": short(one.trajectory.opening, most_text),
            "success": one.trajectory.success,
            "reward": one.trajectory.reward,
            "turns": one.trajectory.turns,
            "tokens": one.trajectory.sampled_tokens,
            "truncated": one.trajectory.truncated,
            "failure": one.trajectory.failure or "",
            "seconds": one.trajectory.seconds.get("episode"),
        }
        for number, one in enumerate(episodes)
    ]


def action_rows(episodes: Sequence[Played], most_text: int) -> list[dict[str, Any]]:
    """A row for each turn of each episode. `episode` is the number that the episode has in `episode_rows`."""
    return [
        {
            **_place(number, one),
            "turn": action.turn,
            "action": short(action.reply, most_text),
            "answer": short(action.answer, most_text),
            "reward": action.reward,
            "seconds": action.seconds,
        }
        for number, one in enumerate(episodes)
        for action in actions(one.trajectory)
    ]


def short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def _place(number: int, one: Played) -> dict[str, Any]:
    return {"step": one.trajectory.step, "split": one.split, "group": one.trajectory.group, "episode": number}
