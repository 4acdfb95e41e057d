"""Players of 2048: at random, by a fixed order of directions, and by expectimax search."""

import random
from functools import lru_cache
from itertools import pairwise

from trl_ext.agents.environments.game_2048 import engine
from trl_ext.agents.players import Episode, ScriptedPlayer


class RandomMover(ScriptedPlayer):
    """Any of the legal moves."""

    def choose(self, episode: Episode, rng: random.Random) -> str:
        return rng.choice(engine.legal_moves(episode.environment.board))


class CornerMover(ScriptedPlayer):
    """The first legal move of: down, left, right, up. It keeps the large tiles near a corner."""

    def choose(self, episode: Episode, rng: random.Random) -> str:
        legal = engine.legal_moves(episode.environment.board)
        return next(direction for direction in ("down", "left", "right", "up") if direction in legal)


class Expectimax(ScriptedPlayer):
    """Looks `depth` moves ahead, over all tiles that may appear between them, and takes the move of the best mean."""

    def __init__(self, seed: int = 0, depth: int = 2) -> None:
        super().__init__(seed)
        self.depth = depth

    def choose(self, episode: Episode, rng: random.Random) -> str:
        board = episode.environment.board
        return max(
            engine.legal_moves(board), key=lambda direction: _after(engine.move(board, direction)[0], self.depth)
        )


_LOST = -1000.0


@lru_cache(maxsize=2**16)
def _after(board: engine.Board, depth: int) -> float:
    """What a board that waits for its new tile is worth: the mean over the tiles of the best move after it."""
    if depth == 1:
        return sum(map(_line_value, board)) + sum(map(_line_value, zip(*board, strict=True)))
    cells = engine.empty_cells(board)
    return sum(
        share / len(cells) * _best(engine.place(board, cell, tile), depth - 1)
        for cell in cells
        for tile, share in ((2, 0.9), (4, 0.1))
    )


def _best(board: engine.Board, depth: int) -> float:
    moves = [moved for direction in engine.DIRECTIONS if (moved := engine.move(board, direction)[0]) != board]
    return max((_after(moved, depth) for moved in moves), default=_LOST)


@lru_cache(maxsize=2**17)
def _line_value(line: engine.Row) -> float:
    """Empty cells, pairs to merge and tiles in order are good; large ones out of order cost most."""
    doublings = [tile.bit_length() for tile in line]
    rises = sum(max(0, right - left) * max(left, right) for left, right in pairwise(doublings))
    falls = sum(max(0, left - right) * max(left, right) for left, right in pairwise(doublings))
    merges = sum(left == right != 0 for left, right in pairwise(line))
    return 10.0 * line.count(0) + 7.0 * merges - min(rises, falls)
