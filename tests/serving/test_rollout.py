import re
import threading
import time

import pytest
import torch

from tests.agents.talk import ROWS, Faulty, Talk
from tests.serving.playing import PLAY, PatientStepper, play, remote_trainer, serving, trainer_of, until, workers
from tests.trainers.training import load, weights
from trl_ext.agents.rollout import environment_rollout
from trl_ext.agents.trajectory import TrajectoryRecorder, read_trajectories
from trl_ext.errors import ConfigError, EpisodeFailuresError
from trl_ext.serving.rollout import remote_rollout
from trl_ext.serving.server import RolloutServer

FREE = ("seconds", "called_at", "called_for")  # what may differ between two rollouts of the same episodes


def fields(trajectory):
    return {name: value for name, value in trajectory.to_json().items() if name not in FREE}


def test_a_workers_episodes_are_those_of_the_rollout_in_process_token_for_token(tiny):
    """One worker with a place for each episode: the same batches, so the same random numbers and log-probs."""
    here = play(trainer_of(tiny, environment_rollout(Talk, step_timeout=300.0, **PLAY)), ROWS.select(range(12)))
    with serving() as server, workers(server):
        there = play(remote_trainer(tiny, server, {"gather_seconds": 300.0}), ROWS.select(range(12)))
    assert [fields(one) for one in there["trajectory"]] == [fields(one) for one in here["trajectory"]]
    for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask", "token_rewards"):
        assert there[name] == here[name]
    assert {one.truncated for one in there["trajectory"]} >= {"", "max_turns"}
    assert len({one.turns for one in there["trajectory"]}) > 2
    counters = server.desk.ledger.counters
    assert (counters.asked, counters.done, counters.open) == (12, 12, 0)


def test_the_first_update_from_recorded_episodes_is_that_of_the_rollout_in_process_bit_for_bit(tiny, tmp_path):
    """Episodes played by four workers are recorded; then the policy's words are replayed to environments here."""
    options = {"config_options": {"max_steps": 1, "shuffle_dataset": False, "per_device_train_batch_size": 16}}
    with serving() as server, workers(server, count=4, concurrency=3):
        recorder = TrajectoryRecorder(tmp_path, ["jsonl"])
        remote = trainer_of(tiny, seeded_after(remote_rollout(server, recorder=recorder, **PLAY)), **options)
        remote.train()
    recorded = read_trajectories(tmp_path)
    assert len(recorded) == 16
    here = trainer_of(tiny, seeded_after(environment_rollout(Talk, step_timeout=300.0, **PLAY)), **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trl_ext.agents.rollout.sample", Replayed(recorded))
        here.train()
    assert torch.equal(weights(here.model), weights(remote.model))
    assert (weights(here.model) - weights(load(tiny))).abs().max() > 1e-3
    assert here.state.log_history[0]["reward"] == remote.state.log_history[0]["reward"]


def seeded_after(rollout):
    """TRL shuffles what a rollout returned; sampling has used up other random numbers than replaying."""

    def seeding(prompts, trainer):
        output = rollout(prompts, trainer)
        torch.manual_seed(7)
        return output

    return seeding


class Replayed:
    """The policy as it was: after a row's tokens, those that it wrote then, in the order of the rows."""

    def __init__(self, recorded):
        self.recorded = recorded

    def __call__(self, trainer, prefixes, limit):
        turns, going = [], list(range(len(self.recorded)))
        for prefix in prefixes:
            row = next(row for row in going if self._tokens(row)[: len(prefix)] == prefix and self._left(row, prefix))
            going.remove(row)
            one, start = self.recorded[row], len(prefix) - len(self.recorded[row].prompt_ids)
            end = next((n for n in range(start, len(one.mask)) if one.mask[n] == 0), len(one.mask))
            turns.append((one.completion_ids[start:end], one.logprobs[start:end]))
        return [ids for ids, _ in turns], [logprobs for _, logprobs in turns]

    def _tokens(self, row):
        return self.recorded[row].prompt_ids + self.recorded[row].completion_ids

    def _left(self, row, prefix):
        return any(self.recorded[row].mask[len(prefix) - len(self.recorded[row].prompt_ids) :])


def test_many_workers_play_the_episodes_that_one_environment_plays_greedily(tiny):
    """What an episode becomes does not depend on who plays it, beside which others, or when."""
    greedy = {"config_options": {"generation_kwargs": {"do_sample": False, "top_p": None, "top_k": None}}}
    here = play(
        trainer_of(tiny, environment_rollout(Talk, step_timeout=300.0, **PLAY), **greedy), ROWS.select(range(24))
    )
    with serving() as server, workers(server, count=5, concurrency=2):
        there = play(remote_trainer(tiny, server, {"gather_seconds": 0.0}, **greedy), ROWS.select(range(24)))
    assert there["completion_ids"] == here["completion_ids"]
    assert there["env_mask"] == here["env_mask"]
    assert [one.rewards for one in there["trajectory"]] == [one.rewards for one in here["trajectory"]]


@pytest.mark.parametrize("max_failures", [2, 0.1])
def test_too_many_failures_end_the_run_with_the_first_of_them(tiny, max_failures, monkeypatch):
    monkeypatch.setattr("trl_ext.serving.worker.Stepper", PatientStepper)
    with serving() as server, workers(server, Faulty, step_timeout=0.3):
        trainer = remote_trainer(tiny, server, {"max_failures": max_failures})
        with pytest.raises(
            EpisodeFailuresError, match=r"4 of 20 episodes failed, max_failures = .*turn 1: ValueError: broken"
        ):
            play(trainer, ROWS.select(range(20)))
        assert [failure.error for failure in server.desk.board.failures if "broken" in failure.error]
        point = server.desk.board.series[-1]
        assert (point.episodes, point.failed, point.dropped) == (20, 4, 0)


class Stuck(Talk):
    """The episode of row 3 waits until the test lets it go."""

    go = threading.Event()

    def step(self, action):
        if self.row == 3:
            self.go.wait(300)
        return super().step(action)

    def reset(self, **row):
        self.row = row["seed"]
        return super().reset(**row)


@pytest.fixture
def stuck():
    Stuck.go.clear()
    yield Stuck
    Stuck.go.set()


def test_what_is_not_waited_for_is_dropped_trains_nothing_and_is_no_failure(tiny, stuck):
    with serving() as server, workers(server, stuck):
        trainer = remote_trainer(tiny, server, {"wait_for": 0.8, "max_failures": 0})
        output = play(trainer, ROWS.select(range(5)))
        stuck.go.set()
        assert output["trajectory"][3].failure == "dropped: the rollout did not wait for it"
        assert output["trajectory"][3].reward is None
        assert not any(output["env_mask"][3])
        assert all(one.failure is None for one in output["trajectory"] if one is not output["trajectory"][3])
        assert trainer.rollout.failures == []
        counters = server.desk.ledger.counters
        assert (counters.asked, counters.done, counters.dropped, counters.open) == (5, 4, 1, 0)


@pytest.mark.parametrize(("newer", "adopted"), [(1, True), (2, False)])
def test_with_a_policy_lag_an_episode_is_taken_by_a_later_rollout_that_asks_for_its_row(tiny, stuck, newer, adopted):
    with serving({"max_policy_lag": 1}) as server, workers(server, stuck):
        trainer = remote_trainer(tiny, server, {"wait_for": 0.8})
        first = play(trainer, ROWS.select(range(5)))
        assert first["trajectory"][3].failure == "dropped: it is played on for a later rollout"
        stuck.go.set()
        trainer.state.global_step += newer
        trainer.rollout.wait_for = 1.0
        (second,) = play(trainer, ROWS.select([3]))["trajectory"]
        assert second.failure is None
        counters = server.desk.ledger.counters
        expected = (5, 5, 0, 0) if adopted else (6, 5, 1, 0)
        assert (counters.asked, counters.done, counters.dropped, counters.open) == expected


def test_an_episode_that_takes_too_long_has_failed(tiny, stuck):
    with serving({"episode_timeout": 500.0, "heartbeat": 1000.0}) as server, workers(server, stuck):
        ledger, later = server.desk.ledger, 0.0
        ledger.clock = lambda: time.monotonic() + later

        def wait_long():
            nonlocal later
            until(lambda: ledger.counters.done == 4)
            later = 501.0

        threading.Thread(target=wait_long, daemon=True).start()
        output = play(remote_trainer(tiny, server), ROWS.select(range(5)))
        stuck.go.set()
    assert output["trajectory"][3].failure == "turn 1: took longer than episode_timeout = 500 s"
    assert sum(one.failure is not None for one in output["trajectory"]) == 1


class Odd(Talk):
    """What it says first cannot be tokenised."""

    def reset(self, **row):
        text = super().reset(**row)
        return [{"role": "user", "content": text, "name": 1}] if row["seed"] else [{"role": "user", "content": {}}]


def test_words_that_cannot_be_rendered_fail_their_episode_only(tiny):
    with serving() as server, workers(server, Odd):
        trainer = remote_trainer(tiny, server)
        renderer = trainer.rollout._make_renderer(trainer)
        opening = renderer.opening

        def refusing(prompt, messages):
            if messages[0]["content"] == {}:
                raise TypeError("text only")
            return opening(prompt, messages)

        renderer.opening = refusing
        first, second = play(trainer, ROWS.select(range(2)))["trajectory"]
    assert first.failure == "reset: TypeError: text only"
    assert second.failure is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wait_for": 0.0}, "wait_for = 0.0: must be a share, greater than 0 and at most 1.0"),
        ({"wait_for": 1.5}, "wait_for = 1.5: must be"),
        ({"gather_seconds": -1}, "gather_seconds = -1: must be at least 0"),
        ({"max_turns": 0}, "max_turns = 0: must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        remote_rollout(RolloutServer(), **options)
