import math
import queue
import time

import pytest

from tests.agents.echo import AsyncReset, Echo, SayIt
from trl_ext.agents.actions import ChoiceParser
from trl_ext.agents.environment import Step
from trl_ext.agents.environments.grid_world import GridWorld
from trl_ext.agents.evaluate import evaluate, wilson_interval
from trl_ext.agents.players import Player, ScriptedPlayer
from trl_ext.errors import ConfigError


class Says(ScriptedPlayer):
    def __init__(self, *replies):
        super().__init__()
        self.replies = replies

    def choose(self, episode, rng):
        return self.replies[episode.turns % len(self.replies)]


@pytest.mark.parametrize("environment", [Echo, AsyncReset])
def test_the_score_of_episodes_half_of_which_succeed(environment):
    score, trajectories = evaluate(environment, SayIt(), episodes=10, name="half")
    assert (score.player, score.episodes, score.failed) == ("half", 10, 0)
    assert (score.success, score.reward, score.turns) == (0.5, 1.0, 1.5)  # 2 turns of "yes", or 1 of "no"
    assert score.reward_error == pytest.approx(math.sqrt(10 / 9) / math.sqrt(10))
    assert (score.tokens, score.invalid, score.truncated) == (None, 0.0, 0.0)
    assert [trajectory.row["seed"] for trajectory in trajectories] == list(range(10))
    assert [trajectory.success for trajectory in trajectories] == [True, False] * 5
    assert [message["content"] for message in trajectories[0].messages] == [
        "yes or no?", "yes", "1 times yes", "yes", "2 times yes",
    ]  # fmt: skip


def test_how_many_are_played_at_a_time_changes_nothing():
    def outcome(concurrency):
        _, trajectories = evaluate(GridWorld, GridWorld.players["random"](0), 20, seed=3, concurrency=concurrency)
        return [(one.messages, one.rewards, one.success) for one in trajectories]

    assert outcome(1) == outcome(7) == outcome(100)


def test_the_seed_decides_which_tasks_are_played():
    def tasks(seed):
        return [one.messages[0] for one in evaluate(GridWorld, Says("u"), 10, seed=seed)[1]]

    assert tasks(0) == tasks(0) != tasks(10)


def test_replies_that_are_no_action_are_counted():
    score, trajectories = evaluate(Echo, Says("maybe", "yes"), 4)
    assert score.invalid == 0.5
    assert trajectories[0].metrics["invalid"] == 2


def test_turns_that_run_out_truncate():
    score, _ = evaluate(lambda: Echo(turns_needed=9, max_turns=3), Says("yes"), 2)
    assert (score.truncated, score.turns) == (1.0, 3)


class Faulty(Echo):
    """Every fifth episode raises in `step`, every seventh in `reset`, every eleventh returns rubbish or hangs."""

    def reset(self, **row):
        if row["seed"] % 7 == 6:
            raise OSError("the disk is full")
        return super().reset(**row)

    @property
    def hangs(self):
        return self.row["seed"] % 22 == 10

    def step(self, action):
        if self.row["seed"] % 5 == 4:
            raise ZeroDivisionError("oh")
        if self.row["seed"] % 22 == 21:
            return None
        return time.sleep(60) if self.hangs else super().step(action)


def test_episodes_that_fail_are_named_and_left_out_of_the_means(patient):
    score, trajectories = evaluate(Faulty, Says("yes"), 35, step_timeout=0.2)
    failed = [seed for seed in range(35) if seed % 5 == 4 or seed % 7 == 6 or seed % 11 == 10]
    assert [place for place, one in enumerate(trajectories) if one.failure] == failed
    assert (score.failed, score.success, score.reward) == (len(failed), 1.0, 2.0)
    assert trajectories[4].failure == "ZeroDivisionError: oh"
    assert trajectories[6].failure == "OSError: the disk is full"
    assert trajectories[10].failure.startswith("TimeoutError: ")
    assert trajectories[21].failure.startswith("EnvironmentStepError: step returned None")
    assert trajectories[4].reward is None


def test_an_invalid_reply_can_fail_the_episode():
    score, trajectories = evaluate(lambda: Echo(parser=ChoiceParser(["yes"], on_invalid="fail")), Says("maybe"), 2)
    assert score.failed == 2
    assert trajectories[0].failure.startswith("ActionError: Reply with one of")
    assert score.success is score.reward is score.turns is None


class Full(Player):
    def act(self, episodes):
        return ["yes" if episode.turns == 0 else None for episode in episodes]


def test_a_player_without_room_for_a_reply_truncates():
    score, trajectories = evaluate(Echo, Full(), 2)
    assert trajectories[0].truncated == "context"
    assert (score.truncated, score.turns) == (1.0, 1)


class Unsaid(Echo):
    def step(self, action):
        return Step("", 1.0, True, False, {})


def test_an_environment_that_knows_no_success_has_no_rate():
    score, _ = evaluate(Unsaid, Says("yes"), 3)
    assert score.success is score.success_low is score.success_high is None
    assert score.reward == 1.0


class OnlyWins(Echo):
    """Says what success is where it is reached, and nothing otherwise."""

    def step(self, action):
        step = super().step(action)
        return step._replace(info={"success": True} if step.terminated and self.row["seed"] < 3 else {})


def test_where_an_episode_says_that_it_succeeded_the_others_did_not():
    assert evaluate(OnlyWins, Says("yes"), 12)[0].success == 0.25


class Huge(Echo):
    def step(self, action):
        return super().step(action)._replace(info={"tokens": 10**400} if self.row["seed"] else {})


def test_a_number_that_cannot_be_kept_fails_its_episode_only():
    score, trajectories = evaluate(Huge, Says("yes"), 3)
    assert [one.failure for one in trajectories] == [None] + ["OverflowError: int too large to convert to float"] * 2
    assert score.reward == 2.0


def test_environments_are_reused_and_closed_also_those_that_failed():
    made, closed = [], queue.Queue()

    class Closing(Faulty):
        def close(self):
            closed.put(self)

    def make():
        made.append(Closing())
        return made[-1]

    evaluate(make, Says("yes"), 10, concurrency=3)
    assert len(made) == 3 + 2  # the episodes 4 and 6 fail, and the last one
    assert {closed.get(timeout=60) for _ in made} == set(made)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (1, 10), (5, 10), (10, 10), (30, 100)])
def test_wilsons_bounds_are_the_rates_that_the_data_are_just_compatible_with(successes, trials):
    """The definition: at a bound p, the observed rate is z standard errors sqrt(p(1-p)/n) away."""
    for bound in wilson_interval(successes, trials):
        if 1e-9 < bound < 1 - 1e-9:
            away = abs(successes / trials - bound) / math.sqrt(bound * (1 - bound) / trials)
            assert away == pytest.approx(1.959964)


def test_wilsons_interval_of_a_textbook_case():
    assert wilson_interval(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


@pytest.mark.parametrize("options", [{"episodes": 0}, {"concurrency": 0}])
def test_numbers_below_1_are_refused(options):
    with pytest.raises(ConfigError, match="= 0: must be at least 1"):
        evaluate(Echo, Says("yes"), **options)
