"""Who plays: an interface, and the players that look at the environment instead of reading its text."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl_ext.agents.environment import Environment, Messages


@dataclass
class Episode:
    """One episode as it was played. `number` is its place among those of the evaluation, `seconds` the time it took."""

    number: int
    row: dict[str, Any]
    environment: Environment
    messages: Messages = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False
    failure: str | None = None
    tokens: int | None = None
    seconds: float = 0.0

    @property
    def turns(self) -> int:
        return len(self.rewards)

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated or self.failure is not None

    @property
    def success(self) -> bool | None:
        """The last `info["success"]`. `None`: the episode failed, so that it says nothing about the player."""
        if self.failure is not None:
            return None
        return bool(self.infos and self.infos[-1].get("success"))

    def record(self) -> dict[str, Any]:
        """The episode as plain values, for a JSON file."""
        names = ("number", "row", "messages", "rewards", "infos", "turns", "terminated", "truncated", "success")
        return {name: getattr(self, name) for name in (*names, "failure", "tokens", "seconds")}


class Player(ABC):
    """Plays any number of episodes at once: one call, one reply for each."""

    @abstractmethod
    def act(self, episodes: Sequence[Episode]) -> list[str]:
        """The player's next message in each of these episodes. A player of text reads `messages` only."""


class ScriptedPlayer(Player):
    """A player that knows the environment from inside. `choose` sees one episode and its random numbers.

    The numbers depend on the seed, the episode and the turn only, and not on what else is played beside it.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def act(self, episodes: Sequence[Episode]) -> list[str]:
        return [self.choose(e, random.Random(f"{self.seed} {e.number} {e.turns}")) for e in episodes]

    @abstractmethod
    def choose(self, episode: Episode, rng: random.Random) -> str:
        """The text of the next turn."""


PlayerFactory = Callable[[int], Player]
