"""The game 2048 as an environment: the board as text, a direction a turn."""

import random
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args

from trl_ext.agents.actions import ActionParser, ChoiceParser
from trl_ext.agents.environment import Environment, Step, as_text
from trl_ext.agents.environments.game_2048 import engine
from trl_ext.agents.environments.game_2048.players import CornerMover, Expectimax, RandomMover
from trl_ext.agents.players import PlayerFactory
from trl_ext.errors import ActionError, ConfigError

Reward = Literal["shaped", "score"]

RULES = (
    "You play 2048. Each turn you push all tiles in one direction. Equal tiles that meet become one, and a new tile "
    "appears. Make the largest tile that you can. Reply with one word: left, right, up or down.\n\n"
)


_NOTHING_MOVED = 0.1


class Game2048(Environment):
    """2048. A move that changes nothing adds no tile; the game ends when no move is left.

    Args:
        reward: of a move that changes nothing, -0.1. Of others "score": the points of the move over 100; or "shaped":
            see `shaped_reward`, which ranks long games below short ones.
        target: reaching this tile is success. It ends the game only with `stop_at_target`.
        max_turns: the game is truncated after so many turns.
        size: rows and columns of the board, at least 2.
        parser: how a reply becomes a direction.
    """

    players: ClassVar[Mapping[str, PlayerFactory]] = {
        "random": RandomMover,
        "scripted": CornerMover,
        "expectimax": Expectimax,
    }

    def __init__(
        self,
        reward: Reward = "score",
        target: int = 512,
        stop_at_target: bool = False,
        max_turns: int | None = 1000,
        size: int = 4,
        parser: ActionParser | None = None,
    ) -> None:
        if reward not in get_args(Reward):
            raise ConfigError(f"reward = {reward!r}: must be one of {', '.join(get_args(Reward))}")
        if size < 2:
            raise ConfigError(f"size = {size}: must be at least 2")
        if max_turns is not None and max_turns < 1:
            raise ConfigError(f"max_turns = {max_turns}: must be at least 1")
        self.reward = reward
        self.target = target
        self.stop_at_target = stop_at_target
        self.max_turns = max_turns
        self.size = size
        self.parser = parser or ChoiceParser(engine.DIRECTIONS, invalid_penalty=0.1)
        self.reset()

    def reset(self, **row: Any) -> str:
        """A new game. The column `seed` gives it its own random numbers: the same moves lead to the same board."""
        self._rng = random.Random(row.get("seed"))
        self.board = engine.new_board(self._rng, self.size)
        self.score = 0
        self.turns = 0
        return RULES + engine.as_text(self.board)

    def step(self, action: Any) -> Step:
        if action not in engine.DIRECTIONS:
            raise ActionError(f"Reply with one of: {', '.join(engine.DIRECTIONS)}.")
        moved, gained = engine.move(self.board, action)
        legal = moved != self.board
        if legal:
            self.board = engine.add_tile(moved, self._rng)
            self.score += gained
        self.turns += 1
        over = not engine.legal_moves(self.board) or (self.stop_at_target and self.success)
        reward = -_NOTHING_MOVED
        if legal:
            reward = shaped_reward(self.board, gained) if self.reward == "shaped" else gained / 100
        text = engine.as_text(self.board) if legal else f"Nothing moves {action}.\n{engine.as_text(self.board)}"
        info = {
            "success": self.success,
            "legal": legal,
            "score": self.score,
            "largest_tile": engine.largest(self.board),
        }
        return Step(text, reward, over, not over and self.out_of_turns, info)

    @property
    def success(self) -> bool:
        return engine.largest(self.board) >= self.target

    def move(self, direction: Literal["left", "right", "up", "down"]) -> str:
        """
        Push all tiles of the board in one direction.

        Args:
            direction: Where to push the tiles.

        Returns:
            The board after the move.
        """
        return as_text(self.step(direction)[0])

    @property
    def tools(self) -> list[Callable[..., Any]]:
        return [self.move]


def shaped_reward(board: engine.Board, gained: int) -> float:
    """The reward of a move that led to `board`, of which the new tile is a part:

        gained / 100 + 0.01 * empty cells + 0.1 * log2(largest tile) + 0.05 * smoothness

    `smoothness` is at most 0 and outweighs the rest on most boards, so that a longer game is often worth less: of 20
    games, moves at random (a 128 tile, 121 turns) got -87 a game, the fixed order of `CornerMover` (a 256 tile, 213
    turns) -105, `Expectimax` up to its 512 tile -8.
    """
    doublings = engine.largest(board).bit_length() - 1
    return gained / 100 + 0.01 * len(engine.empty_cells(board)) + 0.1 * doublings + 0.05 * engine.smoothness(board)
