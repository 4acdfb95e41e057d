"""The rules of 2048 as pure functions on a board: a tuple of rows, 0 where a cell is empty."""

import random
from functools import lru_cache
from itertools import pairwise

Row = tuple[int, ...]
Board = tuple[Row, ...]

DIRECTIONS = ("left", "right", "up", "down")
_FOUR = 0.1  # how often a new tile is a 4


@lru_cache(maxsize=2**17)
def slide(row: Row) -> tuple[Row, int]:
    """A row pushed to the left, and what its merges score. The cache is the lookup table that makes search fast."""
    merged: list[int] = []
    gained, mergeable = 0, False
    for tile in row:
        if not tile:
            continue
        if mergeable and merged[-1] == tile:
            merged[-1] += tile
            gained += merged[-1]
            mergeable = False  # a tile merges once a move
        else:
            merged.append(tile)
            mergeable = True
    return (*merged, *(0,) * (len(row) - len(merged))), gained


def move(board: Board, direction: str) -> tuple[Board, int]:
    """The board after a move, before a tile is added, and the points gained. The same board: the move is not legal."""
    if direction in ("up", "down"):
        turned, gained = move(tuple(zip(*board, strict=True)), "left" if direction == "up" else "right")
        return tuple(zip(*turned, strict=True)), gained
    backwards = direction == "right"
    slid = [slide(row[::-1] if backwards else row) for row in board]
    return tuple(row[::-1] if backwards else row for row, _ in slid), sum(gained for _, gained in slid)


def legal_moves(board: Board) -> list[str]:
    """The directions that change the board. There are none when the game is over."""
    return [direction for direction in DIRECTIONS if move(board, direction)[0] != board]


def empty_cells(board: Board) -> list[tuple[int, int]]:
    return [(i, j) for i, row in enumerate(board) for j, tile in enumerate(row) if not tile]


def place(board: Board, cell: tuple[int, int], tile: int) -> Board:
    i, j = cell
    return (*board[:i], (*board[i][:j], tile, *board[i][j + 1 :]), *board[i + 1 :])


def add_tile(board: Board, rng: random.Random) -> Board:
    """The board with a new tile, a 2 or one time in ten a 4, on one of its empty cells."""
    return place(board, rng.choice(empty_cells(board)), 4 if rng.random() < _FOUR else 2)


def new_board(rng: random.Random, size: int = 4) -> Board:
    return add_tile(add_tile(((0,) * size,) * size, rng), rng)


def largest(board: Board) -> int:
    return max(map(max, board))


def smoothness(board: Board) -> int:
    """Minus the sum over neighbouring tiles of how many doublings lie between them: 0 is the smoothest."""
    return sum(map(_row_smoothness, board)) + sum(map(_row_smoothness, zip(*board, strict=True)))


@lru_cache(maxsize=2**17)
def _row_smoothness(row: Row) -> int:
    return -sum(abs(left.bit_length() - right.bit_length()) for left, right in pairwise(row) if left and right)


def as_text(board: Board) -> str:
    """A line a row, right-aligned, a dot where a cell is empty."""
    width = len(str(largest(board)))
    return "\n".join(" ".join(str(tile or ".").rjust(width) for tile in row) for row in board)
