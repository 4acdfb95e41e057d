"""An episode while it is played: its conversation, its tokens, and what happened to it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trl_ext.agents.environment import Environment, Messages, Step, as_messages, begin, take_turn
from trl_ext.agents.rendering import Renderer
from trl_ext.agents.stepping import Clock, Stepper
from trl_ext.agents.trajectory import Trajectory, failure_text, json_columns
from trl_ext.errors import EnvironmentStepError

DEFAULT_TURNS = 10  # where neither the user nor the environment says


@dataclass(frozen=True)
class Limits:
    """What ends a turn or an episode. `max_tokens` counts all tokens after the opening, `context` those with it.

    `max_turns` None leaves it to the environment, if that has a limit of its own.
    """

    max_turns: int | None
    max_turn_tokens: int | None
    max_tokens: int
    context: int


class SampledEpisode:
    """One environment and the model's conversation with it. What goes wrong in it ends this episode only."""

    def __init__(self, row: dict[str, Any], renderer: Renderer, limits: Limits, environment: Environment | None = None):
        self.row, self.renderer, self.limits, self.environment = row, renderer, limits, environment
        self.trajectory = Trajectory([], row=json_columns(row))
        self._clock = Clock()
        self._logprobs: list[float] = []
        self._has_logprobs = True
        self._turn: list[int] = []  # the model's tokens since the environment's last ones

    @property
    def playing(self) -> bool:
        """Whether the model has a turn."""
        end = self.trajectory
        return not (end.terminated or end.truncated or end.failure)

    @property
    def ids(self) -> list[int]:
        """All tokens so far."""
        return self.trajectory.prompt_ids + self.trajectory.completion_ids

    @property
    def context_left(self) -> int:
        """How many tokens more the model's context takes."""
        return self.limits.context - len(self.trajectory.prompt_ids) - len(self.trajectory.completion_ids)

    @property
    def room(self) -> int:
        """How many tokens the episode may still have."""
        return min(self.limits.max_tokens - len(self.trajectory.completion_ids), self.context_left)

    @property
    def turn_room(self) -> int:
        """How many tokens the model may still write in this turn."""
        limit = self.limits.max_turn_tokens
        return self.room if limit is None else min(limit - len(self._turn), self.room)

    async def begin(self, env_factory: Callable[[], Environment], stepper: Stepper) -> Messages:
        """The environment's first observation; the environment is made if there is none yet."""
        with self._clock:
            if self.environment is None:
                self.environment = await stepper.call(env_factory)
            if not isinstance(self.environment, Environment):
                found = type(self.environment).__name__
                raise EnvironmentStepError(f"env_factory returned a {found}: must be a trl_ext.agents Environment")
            return await begin(self.environment, self.row, stepper.call)

    def open(self, messages: Messages) -> None:
        """Put the environment's first observation after the dataset's prompt."""
        self.trajectory.messages, self.trajectory.prompt_ids = self.renderer.opening(self.row["prompt"], messages)
        if self.room <= 0:
            self.trajectory.truncated = "context"

    def add(self, ids: list[int], logprobs: list[float] | None) -> bool:
        """Take tokens of the model, as many as there is room for. Whether they end its turn."""
        room = self.turn_room
        ids, logprobs = ids[:room], None if logprobs is None else logprobs[:room]
        self._has_logprobs &= logprobs is not None
        self._extend(ids, logprobs or [0.0] * len(ids), 1)
        self._turn += ids
        if not self.ended and self.room <= 0:  # cut off in the middle of a turn: that is no action
            self._say()
            self.trajectory.truncated = "context"
            return False
        return self.ended or len(ids) >= room

    async def step(self, stepper: Stepper) -> Step:
        """What the environment answers to the model's turn."""
        assert self.environment is not None
        with self._clock:
            return await take_turn(self.environment, self.text, stepper.call)

    def answer(self, step: Step) -> None:
        """Take the environment's answer to a turn: its reward, and its text if the episode goes on."""
        trajectory, ended = self.trajectory, self.ended
        self._say()
        trajectory.add(step)
        if not self.playing:
            return
        if trajectory.turns >= self._max_turns:
            trajectory.truncated = "max_turns"
            return
        between = self.renderer.between(as_messages(step.observation), ended)
        if len(between) >= self.room:
            trajectory.truncated = "context"
            return
        self._extend(between, [0.0] * len(between), 0)

    def fail(self, error: BaseException | str) -> None:
        """The episode ends here and is not scored."""
        what = failure_text(error) if isinstance(error, BaseException) else " ".join(error.split())
        place = f"turn {self.trajectory.turns + 1}" if self.trajectory.messages else "reset"
        if self._turn:
            self._say()
        self.trajectory.success = None
        self.trajectory.failure = f"{place}: {what}"[:500]

    def finish(self, pad_token: int, seconds: float) -> Trajectory:
        """What is recorded, in a form that TRL can take: no prompt and no completion without a token."""
        trajectory = self.trajectory
        trajectory.prompt_ids = trajectory.prompt_ids or [pad_token]
        if not trajectory.completion_ids:
            self._extend([pad_token], [0.0], 0)
        trajectory.logprobs = self._logprobs if self._has_logprobs else None
        trajectory.seconds = {"environment": self._clock.seconds, "episode": seconds}
        trajectory.called_at = [began for began, _ in self._clock.calls]
        trajectory.called_for = [seconds for _, seconds in self._clock.calls]
        return trajectory

    @property
    def _max_turns(self) -> int:
        own = None if self.environment is None else self.environment.max_turns
        return self.limits.max_turns or own or DEFAULT_TURNS

    @property
    def ended(self) -> bool:
        """Whether the model ended its turn, with a stop token."""
        return bool(self._turn) and self._turn[-1] in self.renderer.stop_tokens

    @property
    def turn_tokens(self) -> int:
        """How many the model has written in a turn that is not answered yet."""
        return len(self._turn)

    @property
    def text(self) -> str:
        """What they are."""
        return str(self.renderer.tokenizer.decode(self._turn, skip_special_tokens=True))

    def _extend(self, ids: list[int], logprobs: list[float], mask: int) -> None:
        self.trajectory.completion_ids += ids
        self.trajectory.mask += [mask] * len(ids)
        self._logprobs += logprobs

    def _say(self) -> None:
        self.trajectory.messages.append({"role": "assistant", "content": self.text})
        self._turn = []


def failure_report(failures: list[str], episodes: int, allowed: str, most: int = 5) -> str:
    """One line on what failed: how much, how much may, and the first few."""
    kinds = Counter(failures)
    first = "; ".join(f"{text} (x{count})" if count > 1 else text for text, count in list(kinds.items())[:most])
    more = f"; and {len(kinds) - most} more" if len(kinds) > most else ""
    return f"{len(failures)} of {episodes} episodes failed, max_failures = {allowed}: {first}{more}"
