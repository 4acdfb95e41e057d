import asyncio
import random

import pytest

from trl_ext.agents.environment import take_turn
from trl_ext.agents.environments.grid_world import MOVES, GridWorld, demonstrations, distance
from trl_ext.agents.players import Episode
from trl_ext.errors import ActionError, ConfigError

ALPHABET = set("abcd1234>:")


def play(player, seed, **options):
    """Through the parser, as text: the last step, and the sum of the rewards."""
    environment = GridWorld(**options)
    episode = Episode(seed, environment)
    observation, total = environment.reset(seed=seed), 0.0
    while True:
        assert len(observation) == 6
        assert set(observation) <= ALPHABET
        step = asyncio.run(take_turn(environment, player.act([episode])[0]))
        observation, total = step.observation, total + step.reward
        episode.trajectory.rewards.append(step.reward)
        if step.terminated or step.truncated:
            return step, total


def test_a_walk_by_hand():
    world = GridWorld(closer=0.1)
    assert world.reset(start="a1", goal="b2") == "a1>b2:"
    assert world.step("l") == ("a1>b2:", 0.0, False, False, {"success": False})  # off the grid: it stays
    assert world.step("r") == ("b1>b2:", 0.1, False, False, {"success": False})
    assert world.step("d").observation == "b1>b2:"
    assert world.step("u") == ("b2>b2:", 1.1, True, False, {"success": True})


def test_a_step_away_costs_what_a_step_closer_gains():
    world = GridWorld(closer=0.1)
    world.reset(start="b2", goal="d4")
    assert [world.step(letter).reward for letter in "dulr"] == pytest.approx([-0.1, 0.1, -0.1, 0.1])


def test_turns_run_out():
    world = GridWorld(max_turns=2)
    world.reset(start="a1", goal="d4")
    assert world.step("u")[2:4] == (False, False)
    assert world.step("u")[2:4] == (False, True)


def test_arriving_with_the_last_turn_is_a_success():
    world = GridWorld(max_turns=1)
    world.reset(start="a1", goal="a2")
    assert world.step("u")[2:] == (True, False, {"success": True})


def test_the_optimal_player_always_arrives_and_the_random_one_seldom():
    optimal = [play(GridWorld.players["scripted"](0), seed) for seed in range(100)]
    assert all(step.info["success"] for step, _ in optimal)
    walks = [play(GridWorld.players["random"](0), seed)[0].info["success"] for seed in range(300)]
    assert 0.1 < sum(walks) / 300 < 0.3


def test_the_optimal_player_takes_a_shortest_way():
    for seed in range(20):
        world = GridWorld()
        world.reset(seed=seed)
        shortest = distance(world.place, world.goal)
        assert play(GridWorld.players["scripted"](0), seed)[1] == pytest.approx(1 + 0.1 * shortest)


def test_starts_and_goals_keep_their_distance():
    world = GridWorld(min_distance=4)
    for seed in range(50):
        world.reset(seed=seed)
        assert distance(world.place, world.goal) >= 4


@pytest.mark.parametrize("reply", ["", "up", "x", "uu"])
def test_other_replies_cost_the_turn_and_show_the_place_again(reply):
    world = GridWorld(max_turns=2)
    world.reset(start="a1", goal="d4")
    step = asyncio.run(take_turn(world, reply))
    assert step[:4] == ("a1>d4:", 0.0, False, False)
    assert step.info["success"] is False
    assert "u, d, l, r" in step.info["invalid"]
    assert asyncio.run(take_turn(world, reply)).truncated


def test_the_same_seed_is_the_same_task():
    assert GridWorld().reset(seed=7) == GridWorld().reset(seed=7)
    assert len({GridWorld().reset(seed=seed) for seed in range(100)}) > 50


def test_actions_that_are_none_are_refused():
    with pytest.raises(ActionError, match="u, d, l, r"):
        GridWorld().step((0, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GridWorld(max_turns=0), "max_turns = 0"),
        (lambda: GridWorld(min_distance=7), "min_distance = 7: must be from 1 to 6"),
        (lambda: GridWorld().reset(start="e1", goal="a1"), "cell 'e1'"),
    ],
)
def test_options_and_cells_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_every_cell_moves_as_the_letter_says():
    rng = random.Random(0)
    world = GridWorld(max_turns=10**6)
    world.reset(start="b2", goal="c3")
    for _ in range(200):
        letter = rng.choice(list(MOVES))
        (x, y), (dx, dy) = world.place, MOVES[letter]
        world.step(letter)
        assert world.place == (min(max(x + dx, 0), 3), min(max(y + dy, 0), 3))


def closer_share(rows):
    """How many of the letters lead closer."""
    closer = 0
    for row in rows:
        world = GridWorld()
        world.reset(start=row["prompt"][-6:-4], goal=row["prompt"][-3:-1])
        closer += row["completion"] in world.closer_letters()
    return closer / len(rows)


def test_demonstrations_are_walks_some_letters_of_which_lead_closer():
    rows = demonstrations(walks=300, right=0.5)
    assert rows == demonstrations(walks=300, right=0.5) != demonstrations(walks=300, right=0.5, seed=1)
    assert sum(len(row["prompt"]) == 6 for row in rows) == 300
    by_chance = closer_share(demonstrations(walks=300, right=0.0))
    assert closer_share(rows) == pytest.approx(0.5 + 0.5 * by_chance, abs=0.05)
    assert closer_share(demonstrations(walks=300, right=1.0)) == 1.0
