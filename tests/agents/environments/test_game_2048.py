import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_ext.agents.environment import Environment
from trl_ext.agents.environments.game_2048 import Game2048, engine, players
from trl_ext.agents.environments.game_2048.environment import RULES, shaped_reward
from trl_ext.agents.environments.game_2048.players import Expectimax
from trl_ext.agents.players import Episode
from trl_ext.errors import ActionError, ConfigError

TILES = st.sampled_from([0, 0, 0, 2, 2, 4, 4, 8, 16, 1024, 131072])
BOARDS = st.lists(st.lists(TILES, min_size=4, max_size=4).map(tuple), min_size=4, max_size=4).map(tuple)
DIRECTIONS = st.sampled_from(engine.DIRECTIONS)
STUCK = ((2, 4, 2, 4), (4, 2, 4, 2), (2, 4, 2, 4), (4, 2, 4, 2))


def slow_move(board, direction):
    """The rules written another way: each tile walks cell by cell, those nearest to the wall first."""
    size = len(board)
    cells = {(i, j): board[i][j] for i in range(size) for j in range(size)}
    di, dj = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}[direction]
    gained, merged = 0, set()
    for i, j in sorted(cells, key=lambda cell: -(cell[0] * di + cell[1] * dj)):
        tile, cells[i, j] = cells[i, j], 0
        if not tile:
            continue
        while cells.get((i + di, j + dj)) == 0:
            i, j = i + di, j + dj
        ahead = (i + di, j + dj)
        if cells.get(ahead) == tile and ahead not in merged:
            cells[ahead] = 2 * tile
            merged.add(ahead)
            gained += 2 * tile
        else:
            cells[i, j] = tile
    return tuple(tuple(cells[i, j] for j in range(size)) for i in range(size)), gained


def play(player, seed, **options):
    environment = Game2048(**options)
    episode = Episode(seed, environment)
    environment.reset(seed=seed)
    while True:
        step = environment.step(player.act([episode])[0])
        episode.trajectory.rewards.append(step.reward)
        if step.terminated or step.truncated:
            return step


def test_thousands_of_random_moves_agree_with_a_slow_reference():
    rng = random.Random(0)
    for size in (4, 4, 4, 3, 5):
        for _ in range(15):
            board = engine.new_board(rng, size)
            while engine.legal_moves(board):
                outcomes = {direction: engine.move(board, direction) for direction in engine.DIRECTIONS}
                assert outcomes == {direction: slow_move(board, direction) for direction in engine.DIRECTIONS}
                board = engine.add_tile(outcomes[rng.choice(engine.legal_moves(board))][0], rng)


@pytest.mark.parametrize(
    ("row", "after", "gained"),
    [
        ((2, 2, 2, 2), (4, 4, 0, 0), 8),
        ((2, 2, 2, 0), (4, 2, 0, 0), 4),
        ((4, 2, 2, 0), (4, 4, 0, 0), 4),
        ((0, 2, 0, 2), (4, 0, 0, 0), 4),
        ((8, 4, 4, 8), (8, 8, 8, 0), 8),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0),
    ],
)
def test_a_tile_merges_once_a_move(row, after, gained):
    assert engine.slide(row) == (after, gained)


@given(BOARDS, DIRECTIONS)
def test_a_move_keeps_the_sum_of_the_tiles_and_never_adds_one(board, direction):
    moved, gained = engine.move(board, direction)
    assert sum(map(sum, moved)) == sum(map(sum, board))
    assert len(engine.empty_cells(moved)) >= len(engine.empty_cells(board))
    assert gained >= 0
    assert (gained == 0) == (len(engine.empty_cells(moved)) == len(engine.empty_cells(board)))


@given(BOARDS)
def test_left_and_right_mirror_each_other_and_up_and_down_are_the_same_on_the_turned_board(board):
    mirrored = tuple(row[::-1] for row in board)
    turned = tuple(zip(*board, strict=True))
    left, gained = engine.move(board, "left")
    assert engine.move(mirrored, "right") == (tuple(row[::-1] for row in left), gained)
    assert engine.move(turned, "up") == (tuple(zip(*left, strict=True)), gained)
    assert engine.move(turned[::-1], "down")[0] == tuple(zip(*left, strict=True))[::-1]


@given(BOARDS, DIRECTIONS)
def test_a_move_that_changes_nothing_is_not_legal_and_adds_no_tile(board, direction):
    environment = Game2048()
    environment.board = board
    legal = direction in engine.legal_moves(board)
    step = environment.step(direction)
    assert step.info["legal"] == legal
    if legal:
        assert sum(map(sum, environment.board)) - sum(map(sum, board)) in (2, 4)
    else:
        assert environment.board == board
        assert step.reward == -0.1


def test_the_game_ends_only_when_no_move_is_left():
    assert engine.legal_moves(STUCK) == []
    full = ((2, 4, 2, 4), (4, 2, 4, 2), (2, 4, 2, 4), (4, 2, 8, 8))  # no empty cell, one pair
    assert engine.legal_moves(full) == ["left", "right"]
    environment = Game2048(max_turns=None)
    for board, over in ((STUCK, True), (full, False)):
        environment.board = board
        assert environment.step("up").terminated is over


@settings(max_examples=20)
@given(st.integers())
def test_every_game_of_random_moves_ends_on_a_board_without_moves(seed):
    step = play(Game2048.players["random"](0), seed, max_turns=None)
    assert step.terminated
    assert not step.truncated


def test_new_tiles_are_a_four_one_time_in_ten_and_equally_often_everywhere():
    rng = random.Random(0)
    empty = ((0, 0), (0, 0))
    boards = [engine.add_tile(empty, rng) for _ in range(8000)]
    fours = sum(engine.largest(board) == 4 for board in boards)
    assert abs(fours / 8000 - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 8000)
    for i, j in engine.empty_cells(empty):
        assert abs(sum(board[i][j] > 0 for board in boards) / 8000 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 8000)


def test_the_shaped_reward_of_a_board_counted_by_hand():
    board = ((4, 2, 0, 0), (0, 8, 0, 0), (0, 0, 0, 0), (0, 0, 0, 2))
    # neighbours: 4-2 one doubling, 2-8 two; 12 empty cells; the largest tile is 2 doubled twice, so log2 is 3
    assert engine.smoothness(board) == -3
    assert shaped_reward(board, 4) == pytest.approx(0.04 + 0.12 + 0.3 - 0.15)
    environment = Game2048(reward="shaped")
    environment.board = ((4, 2, 0, 0), *((0,) * 4,) * 3)
    gained = environment.step("down").reward
    assert gained == pytest.approx(shaped_reward(environment.board, 0))


def test_the_score_reward_is_the_points_of_the_move():
    environment = Game2048(reward="score")
    environment.board = ((64, 64, 0, 0), *((0,) * 4,) * 3)
    assert environment.step("left").reward == 1.28
    assert environment.step("left").info["score"] == 128


def test_the_same_seed_and_moves_give_the_same_game_whatever_was_played_before():
    first, second = Game2048(), Game2048()
    second.step("left")
    assert first.reset(seed=3) == second.reset(seed=3)
    for direction in ("left", "up", "right", "left"):
        assert first.step(direction) == second.step(direction)
    assert first.reset(seed=4) != second.reset(seed=3)


def test_the_board_is_text_with_a_line_a_row():
    environment = Game2048()
    assert environment.reset(seed=0).startswith(RULES)
    environment.board = ((2, 0, 0, 128), *((0,) * 4,) * 3)
    assert engine.as_text(environment.board).splitlines()[:2] == ["  2   .   . 128", "  .   .   .   ."]
    assert environment.step("up").observation.startswith("Nothing moves up.\n")


def test_turns_run_out_and_reaching_the_target_is_success():
    environment = Game2048(max_turns=2, target=8)
    environment.board = ((4, 4, 0, 0), *((0,) * 4,) * 3)
    assert environment.step("left")[2:4] == (False, False)
    step = environment.step("down")
    assert step[2:4] == (False, True)
    assert step.info["success"]
    assert environment.invalid(ActionError("what?")).info["success"]  # the tile is still there
    stopping = Game2048(target=8, stop_at_target=True)
    stopping.board = ((4, 4, 0, 0), *((0,) * 4,) * 3)
    assert stopping.step("left").terminated


def test_expectimax_reaches_512_where_random_moves_do_not():
    options = {"target": 512, "stop_at_target": True}
    assert all(play(Expectimax(), seed, **options).info["success"] for seed in range(2))
    assert not any(play(Game2048.players["random"](0), seed, **options).info["success"] for seed in range(20))


def test_expectimax_is_the_mean_over_new_tiles_of_the_best_move_after_them():
    def slowly(board):
        def worth(moved):
            return sum(players._line_value(line) for line in (*moved, *zip(*moved, strict=True)))

        tiles = [(cell, tile, share) for cell in engine.empty_cells(board) for tile, share in ((2, 0.9), (4, 0.1))]
        total = 0.0
        for (i, j), tile, share in tiles:
            filled = tuple(
                tuple(tile if (i, j) == (k, m) else old for m, old in enumerate(row)) for k, row in enumerate(board)
            )
            moves = [slow_move(filled, direction)[0] for direction in engine.DIRECTIONS]
            total += share * max([worth(moved) for moved in moves if moved != filled], default=players._LOST)
        return total / (len(tiles) / 2)

    rng = random.Random(0)
    environment = Game2048()
    for seed in range(5):
        environment.reset(seed=seed)
        for _ in range(40):
            environment.step(rng.choice(engine.legal_moves(environment.board)))
        best = max(engine.legal_moves(environment.board), key=lambda way: slowly(slow_move(environment.board, way)[0]))
        assert Expectimax(depth=2).act([Episode(0, environment)]) == [best]


@pytest.mark.parametrize("options", [{"reward": "win"}, {"size": 1}, {"max_turns": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} = "):
        Game2048(**options)


def test_the_environment_is_an_environment():
    assert isinstance(Game2048(), Environment)
    assert len(Game2048().rows(3, seed=5)) == 3
