"""Who plays: the interface, an episode as a player sees it, and players that know an environment from inside."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl_ext.agents.environment import Messages, Step
from trl_ext.agents.trajectory import Trajectory, failure_text


@dataclass
class Episode:
    """An episode that is played. `number` is its place among those of an evaluation."""

    number: int
    environment: Any  # an Environment; its scripted players know more of it
    trajectory: Trajectory = field(default_factory=lambda: Trajectory([]))

    @property
    def messages(self) -> Messages:
        return self.trajectory.messages

    @property
    def turns(self) -> int:
        return self.trajectory.turns

    @property
    def invalid(self) -> float:
        """How many replies were no action."""
        return self.trajectory.metrics.get("invalid", 0.0)

    @property
    def playing(self) -> bool:
        """Whether the player has a turn."""
        return not (self.trajectory.terminated or self.trajectory.truncated or self.trajectory.failure)

    def add(self, step: Step) -> None:
        """Take what the environment answers to a reply."""
        self.trajectory.add(step)

    def fail(self, error: BaseException) -> None:
        """The episode ends here, and says nothing about the player."""
        self.trajectory.failure = failure_text(error)


class Player(ABC):
    """Plays any number of episodes at once: one call, one reply for each."""

    @abstractmethod
    def act(self, episodes: Sequence[Episode]) -> list[str | None]:
        """The next reply in each of these episodes, by their `messages`. None: there is no room for one.

        A player that has tokens appends them, with its mask, to the episode's trajectory.
        """


class ScriptedPlayer(Player):
    """A player that knows the environment from inside. `choose` sees one episode and its random numbers.

    The numbers depend on the seed, the episode and the turn only, and not on what else is played beside it.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def act(self, episodes: Sequence[Episode]) -> list[str | None]:
        return [self.choose(e, random.Random(f"{self.seed} {e.number} {e.turns}")) for e in episodes]

    @abstractmethod
    def choose(self, episode: Episode, rng: random.Random) -> str:
        """The text of the next turn."""


PlayerFactory = Callable[[int], Player]
