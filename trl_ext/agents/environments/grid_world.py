"""A 4x4 grid to walk on, small enough that a tiny model learns it on a CPU: six characters a turn, one letter back."""

import random
from collections.abc import Mapping
from typing import Any, ClassVar

from trl_ext.agents.actions import ActionParser, ChoiceParser
from trl_ext.agents.environment import Environment, Step
from trl_ext.agents.players import Episode, PlayerFactory, ScriptedPlayer
from trl_ext.errors import ActionError, ConfigError

MOVES = {"u": (0, 1), "d": (0, -1), "l": (-1, 0), "r": (1, 0)}
_COLUMNS = "abcd"
_SIZE = len(_COLUMNS)

Cell = tuple[int, int]


class RandomWalker(ScriptedPlayer):
    """Any of the four letters."""

    def choose(self, episode: Episode, rng: random.Random) -> str:
        return rng.choice(list(MOVES))


class StraightWalker(ScriptedPlayer):
    """Any of the letters that lead closer to the goal: it always arrives, by a shortest way."""

    def choose(self, episode: Episode, rng: random.Random) -> str:
        letters: list[str] = episode.environment.closer_letters()
        return rng.choice(letters)


class GridWorld(Environment):
    """Walk from one cell to another, a letter a turn: u, d, l or r. A step off the grid stays where it is.

    An observation is the place, `>`, the goal and `:`, e.g. `a1>c4:`; it says all that there is to know. Success is to
    arrive within `max_turns`. The reward is 1 for arriving, and `closer` for each turn that leads closer to the goal,
    minus as much for one that leads away.

    Args:
        min_distance: start and goal are at least so many steps apart, 1 to 6.
        parser: default: nothing but the letter; anything else costs the turn.
    """

    players: ClassVar[Mapping[str, PlayerFactory]] = {"random": RandomWalker, "scripted": StraightWalker}

    def __init__(
        self, max_turns: int = 6, min_distance: int = 1, closer: float = 0.1, parser: ActionParser | None = None
    ) -> None:
        if max_turns < 1:
            raise ConfigError(f"max_turns = {max_turns}: must be at least 1")
        if not 1 <= min_distance <= 2 * (_SIZE - 1):
            raise ConfigError(f"min_distance = {min_distance}: must be from 1 to {2 * (_SIZE - 1)}")
        self.max_turns = max_turns
        self.min_distance = min_distance
        self.closer = closer
        self.parser = parser or ChoiceParser(tuple(MOVES), exact=True)
        self.reset(seed=0)

    def reset(self, **row: Any) -> str:
        """Begin at the row's `start` with its `goal` (`"a1"`); where it has none, at cells that its `seed` picks."""
        self.turns = 0
        rng = random.Random(row.get("seed"))
        if row.get("start") and row.get("goal"):
            self.place, self.goal = _cell(row["start"]), _cell(row["goal"])
        else:
            self.place, self.goal = rng.choice(self._pairs())
        return self._text()

    def step(self, action: Any) -> Step:
        if action not in MOVES:
            raise ActionError(f"Reply with one of: {', '.join(MOVES)}.")
        self.turns += 1
        before, self.place = self.distance, self.moved(action)
        arrived = self.success
        reward = self.closer * (before - self.distance) + float(arrived)
        return Step(self._text(), reward, arrived, not arrived and self.out_of_turns, {"success": arrived})

    def invalid(self, error: ActionError) -> Step:
        """The model is shown the place again, not told in words that it has no letters for."""
        return super().invalid(error)._replace(observation=self._text())

    @property
    def success(self) -> bool:
        return self.place == self.goal

    @property
    def distance(self) -> int:
        return distance(self.place, self.goal)

    def moved(self, letter: str) -> Cell:
        """Where a letter leads from here."""
        x, y = (at + by for at, by in zip(self.place, MOVES[letter], strict=True))
        return (x, y) if 0 <= x < _SIZE and 0 <= y < _SIZE else self.place

    def closer_letters(self) -> list[str]:
        return [letter for letter in MOVES if distance(self.moved(letter), self.goal) < self.distance]

    def _pairs(self) -> list[tuple[Cell, Cell]]:
        cells = [(x, y) for x in range(_SIZE) for y in range(_SIZE)]
        return [(start, goal) for start in cells for goal in cells if distance(start, goal) >= self.min_distance]

    def _text(self) -> str:
        return f"{_name(self.place)}>{_name(self.goal)}:"


def demonstrations(walks: int = 2000, right: float = 0.05, seed: int = 0) -> list[dict[str, str]]:
    """Walks to fit a model to before it learns: a row a turn, `prompt` all that was said and `completion` the letter.

    A letter is one that leads closer with the chance `right`, otherwise any of the four. The model comes to walk like
    that, and has looked at where it is and where it should be.
    """
    rng = random.Random(seed)
    world = GridWorld()
    rows = []
    for _ in range(walks):
        text, over = world.reset(seed=rng.random()), False
        while not over:
            letter = rng.choice(world.closer_letters() if rng.random() < right else list(MOVES))
            rows.append({"prompt": text, "completion": letter})
            step = world.step(letter)
            text, over = text + letter + str(step.observation), step.terminated or step.truncated
    return rows


def distance(one: Cell, other: Cell) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def _name(cell: Cell) -> str:
    return f"{_COLUMNS[cell[0]]}{cell[1] + 1}"


def _cell(name: Any) -> Cell:
    if not (isinstance(name, str) and len(name) == 2 and name[0] in _COLUMNS and name[1] in "1234"):
        raise ConfigError(f"cell {name!r}: must be a column from a to d and a row from 1 to 4, e.g. 'b3'")
    return _COLUMNS.index(name[0]), int(name[1]) - 1
