"""What an environment is: Gymnasium's `reset` and `step`, with text between the environment and the model."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from trl_ext.agents.actions import ActionParser, TextParser
from trl_ext.errors import ActionError, ConfigError, EnvironmentStepError

if TYPE_CHECKING:
    from trl_ext.agents.players import PlayerFactory

Messages = list[dict[str, Any]]
Observation = str | Messages


class Step(NamedTuple):
    """What a step returns, in Gymnasium's order. A plain tuple of the five will do.

    `terminated`: the task is over, by success or failure. `truncated`: it was cut off, e.g. there are no turns left.
    `info["success"]`, where an environment sets it, is what `trl-ext evaluate` counts.
    """

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Environment(ABC):
    """An environment of many turns. One instance plays one episode at a time, and any number one after another.

    `reset` and `step` may both be coroutine functions. A subclass with `max_turns` adds 1 to `turns` in each step, sets
    it to 0 in `reset`, and truncates when there are none left; a reply that does not parse counts (see `invalid`).
    `players` are those that `trl-ext evaluate` finds by name; each is called with a seed.
    """

    parser: ActionParser = TextParser()
    players: ClassVar[Mapping[str, "PlayerFactory"]] = {}
    max_turns: int | None = None
    turns: int = 0

    @abstractmethod
    def reset(self, **row: Any) -> Observation | Awaitable[Observation]:
        """Begin an episode: the first observation, as text or as chat messages. `row` is the dataset row's columns."""

    @abstractmethod
    def step(self, action: Any) -> Step | Awaitable[Step]:
        """Take what the parser made of the model's text.

        Raises:
            ActionError: the action makes no sense here; treated like a text that does not parse.
        """

    @property
    def tools(self) -> list[Callable[..., Any]]:
        """The actions as bound methods that return text, typed and with Google docstrings: see `tool_environment`."""
        return []

    def invalid(self, error: ActionError) -> Step:
        """The step that a text which is no action amounts to, as the parser's `on_invalid` says.

        Raises:
            ActionError: `on_invalid` is "fail".
        """
        if self.parser.on_invalid == "fail":
            raise error
        self.turns += 1
        ends = self.parser.on_invalid == "end"
        info = {"invalid": str(error)} | ({} if self.success is None else {"success": self.success})
        return Step(str(error), -self.parser.invalid_penalty, ends, not ends and self.out_of_turns, info)

    @property
    def success(self) -> bool | None:
        """Whether the task is solved as things are. None: the environment does not say."""
        return None

    @property
    def out_of_turns(self) -> bool:
        return self.max_turns is not None and self.turns >= self.max_turns

    def rows(self, episodes: int, seed: int = 0) -> list[dict[str, Any]]:
        """Dataset rows for so many episodes. Other environments than these begin from their column `seed` alone."""
        return [{"seed": seed + episode} for episode in range(episodes)]

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Give back what the environment holds."""


async def call_inline(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that may be a coroutine function, in this thread."""
    result = function(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


async def begin(environment: Environment, row: dict[str, Any], call: Callable[..., Any] = call_inline) -> Messages:
    """Reset `environment` and return its first observation as chat messages.

    `call(function, *args, **kwargs)` runs what may block: pass one that uses threads or a time limit.

    Raises:
        EnvironmentStepError: `reset` returned neither text nor messages.
    """
    return as_messages(await call(environment.reset, **row))


async def take_turn(environment: Environment, text: str, call: Callable[..., Any] = call_inline) -> Step:
    """One turn: parse the model's text, step, and check what comes back.

    Raises:
        ActionError: the text is no action, and the parser's `on_invalid` is "fail".
        EnvironmentStepError: `step` returned something else than the five parts of a step.
    """
    try:
        step = await call(environment.step, environment.parser.parse(text))
    except ActionError as error:
        step = environment.invalid(error)
    return _checked(step)


def as_messages(observation: Any) -> Messages:
    """An observation as chat messages: text is the user's."""
    if isinstance(observation, str):
        return [{"role": "user", "content": encodable(observation)}]
    if isinstance(observation, list) and all(isinstance(part, dict) and "role" in part for part in observation):
        return [
            {**part, "content": encodable(part["content"])} if isinstance(part.get("content"), str) else part
            for part in observation
        ]
    raise EnvironmentStepError(f"observation {_short(observation)}: must be text or a list of chat messages")


def as_text(observation: Any) -> str:
    """An observation as text: the contents of its messages, a line each."""
    return "\n".join(str(message.get("content") or "") for message in as_messages(observation))


def encodable(text: str) -> str:
    """Text that tokenizers and files take: without halves of emojis, which a model's JSON can have (`"\\ud83d"`)."""
    return text.encode("utf-8", "replace").decode()


def _checked(step: Any) -> Step:
    if not isinstance(step, tuple) or len(step) != 5:
        raise EnvironmentStepError(
            f"step returned {_short(step)}: must be (observation, reward, terminated, truncated, info)"
        )
    observation, reward, terminated, truncated, info = step
    as_messages(observation)
    try:
        reward = float(reward)
    except (TypeError, ValueError):
        reward = math.nan
    if not math.isfinite(reward):
        raise EnvironmentStepError(f"step returned the reward {_short(step[1])}: must be a finite number")
    if not isinstance(info, dict):
        raise EnvironmentStepError(f"step returned the info {_short(info)}: must be a dict")
    return Step(observation, reward, bool(terminated), bool(truncated), info)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def from_gymnasium(
    env: Any, parser: ActionParser | None = None, to_text: Callable[[Any], Observation] = str
) -> "GymnasiumEnvironment":
    """Any environment with Gymnasium's interface as an `Environment`; gymnasium itself is not needed.

    Args:
        env: has `reset(seed=, options=)`, which returns (observation, info), and `step(action)`.
        parser: how the text becomes the action, e.g. `ChoiceParser({"left": 0, "right": 1})`. Default: the text itself.
        to_text: how an observation becomes text.
    """
    return GymnasiumEnvironment(env, parser, to_text)


class GymnasiumEnvironment(Environment):
    """What `from_gymnasium` returns. The columns `seed` and `options` of a row reach the environment's `reset`."""

    def __init__(
        self, env: Any, parser: ActionParser | None = None, to_text: Callable[[Any], Observation] = str
    ) -> None:
        for method in ("reset", "step"):
            if not callable(getattr(env, method, None)):
                raise ConfigError(f"from_gymnasium: {_short(env)} has no method {method!r}")
        self.env = env
        self.parser = parser or TextParser()
        self.to_text = to_text

    def reset(self, **row: Any) -> Observation:
        observation, _ = self.env.reset(seed=row.get("seed"), options=row.get("options"))
        return self.to_text(observation)

    def step(self, action: Any) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return Step(self.to_text(observation), float(reward), bool(terminated), bool(truncated), dict(info))

    def close(self) -> None:
        if callable(getattr(self.env, "close", None)):
            self.env.close()
