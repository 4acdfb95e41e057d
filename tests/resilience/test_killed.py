"""A run killed with SIGKILL and started again by the same command ends where one that was never killed ends."""

import random
import signal
import time

import pytest
import torch

from tests.resilience.runs import Run

KILLS = {
    "in generation": 3,
    "in a file": 9,  # the second checkpoint's
    "in backward": 4,
    "before the seal": 1,
    "before rotation": 1,
    "in rotation": 1,
    "in a log": 1,
}


@pytest.fixture(scope="module", params=["cispo.py", "ppo.py"])
def whole(request, tiny, tmp_path_factory):
    """The run that is never killed."""
    run = Run(request.param, tiny, tmp_path_factory.mktemp("whole") / "run")
    assert run.end() == [0], run.said()
    return run


def assert_same(run, whole):
    assert run.steps() == whole.steps()
    assert run.weights().keys() == whole.weights().keys()
    for name, tensor in whole.weights().items():
        assert torch.equal(run.weights()[name], tensor), name
    assert run.metrics() == whole.metrics()
    assert run.checkpoints() == whole.checkpoints()


def test_killed_once_at_each_moment_a_run_ends_as_if_it_had_not_been(whole, tiny, tmp_path):
    run = Run(whole.recipe, tiny, tmp_path / "run")
    for moment, count in KILLS.items():
        assert run.end(moment, count) == [-signal.SIGKILL], run.said()
        if moment == "in a file":
            assert run.checkpoints() == ["checkpoint-3", "checkpoint-6"]
        if moment == "in backward":
            assert "checkpoint-6 is skipped: the run ended while writing it" in run.said()
            assert "Resuming from out/checkpoint-3" in run.said()
        if moment == "before rotation":  # both are complete
            assert run.checkpoints() == ["checkpoint-6", "checkpoint-9"]
        if moment == "in rotation":
            assert run.checkpoints() == ["checkpoint-9", "checkpoint-10", "deleting-checkpoint-6"]
    assert run.end() == [0], run.said()
    assert_same(run, whole)


def test_a_run_that_is_finished_ends_at_once_and_changes_nothing(whole):
    weights, metrics = whole.weights(), whole.metrics()
    assert whole.end("in generation") == [0]  # it does not come to that moment
    assert "out/checkpoint-10 is at step 10 of 10: there was nothing left to train" in whole.said()
    assert whole.metrics() == metrics
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole.weights().items())


def test_a_run_killed_when_it_was_trained_measures_what_it_would_have(tiny, tmp_path):
    options = ["--max_steps", "2", "--measure_prompts", "4"]
    whole = Run("cispo.py", tiny, tmp_path / "whole", *options)
    assert whole.end() == [0], whole.said()
    run = Run("cispo.py", tiny, tmp_path / "run", *options)
    assert run.end("in evaluation", 2) == [-signal.SIGKILL], run.said()
    assert run.end() == [0], run.said()
    assert "out/checkpoint-2 is at step 2 of 2: there was nothing left to train" in run.said()
    assert_same(run, whole)


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["cispo.py", "ppo.py", "hybrid.py"])
def test_killed_ten_times_at_random_a_run_ends_as_if_it_had_not_been(recipe, tiny, tmp_path):
    options = ["--max_steps", "120", "--save_steps", "5", "--measure_prompts", "4"]
    if recipe == "hybrid.py":
        options += ["--sft_dataset_name", "builtin:arithmetic"]
    whole = Run(recipe, tiny, tmp_path / "whole", *options)
    assert whole.end() == [0], whole.said()  # the first one may have to start the process that runs are forked from
    started = time.monotonic()
    Run(recipe, tiny, tmp_path / "timed", *options).end()
    seconds = time.monotonic() - started
    run, moments, reached = Run(recipe, tiny, tmp_path / "run", *options), random.Random(0), []
    for _ in range(10):
        (process,) = run.start()
        time.sleep(moments.uniform(0.15, 0.4) * seconds)
        process.kill()
        process.join()
        reached.append((process.exitcode, run.checkpoints()))
    print(recipe, f"{seconds:.1f} s", *reached, sep="\n")
    assert [code for code, _ in reached].count(-signal.SIGKILL) >= 5
    assert run.end() == [0], run.said()
    assert_same(run, whole)
