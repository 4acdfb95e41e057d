"""Two processes (DDP on the CPU): they stop together, and neither waits for one that is gone."""

import signal

import pytest
import torch

from tests.resilience.runs import Run


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    run = Run("cispo.py", tiny, tmp_path_factory.mktemp("whole") / "run")
    assert run.end(processes=2) == [0, 0], run.said()
    return run


def test_a_sigterm_to_one_writes_a_checkpoint_and_ends_both_with_0_and_the_command_goes_on(whole, tiny, tmp_path):
    run = Run("cispo.py", tiny, tmp_path / "run")
    assert run.end("sigterm", 5, processes=2, on=1) == [0, 0], run.said()
    assert run.checkpoints() == ["checkpoint-5"]
    assert "stopped by SIGTERM at step 5 of 10" in run.said()
    assert not (run.out / "summary.json").exists()
    assert run.end(processes=2) == [0, 0], run.said()
    assert all(torch.equal(run.weights()[name], tensor) for name, tensor in whole.weights().items())
    assert run.metrics() == whole.metrics()


def test_a_checkpoint_is_not_complete_before_every_process_has_written_its_part(whole, tiny, tmp_path):
    run = Run("cispo.py", tiny, tmp_path / "run")
    # process 1 saves its random state and its completions: the fourth is those of checkpoint-6
    assert run.end("in a file", 4, processes=2, on=1)[1] == -signal.SIGKILL
    assert "checkpoint-3" in run.checkpoints()
    assert run.end(processes=2) == [0, 0], run.said()
    assert "Resuming from out/checkpoint-3" in run.said()
    assert all(torch.equal(run.weights()[name], tensor) for name, tensor in whole.weights().items())


@pytest.mark.parametrize("reward", ["raises_on_1", "raises_later_on_1"])
def test_a_reward_that_raises_on_one_is_named_on_both(tiny, tmp_path, reward):
    run = Run("cispo.py", tiny, tmp_path / "run", "--reward_funcs", "my_rewards.length", f"my_rewards.{reward}")
    assert all(run.end(processes=2))  # with 1, or by an abort of torch's threads
    assert f"error: reward '{reward}' raised on process 1: KeyError: 'no such thing'" in run.said(0)
    assert "Traceback" not in run.said(0)
    assert 'raise KeyError("no such thing")' in run.said(1)  # the place in the user's file
    assert f"(reward '{reward}', process 1)" in run.said(1)


@pytest.mark.parametrize("reward", ["hangs_on_1", "hangs_later_on_1"])
def test_a_reward_that_hangs_on_one_is_named(tiny, tmp_path, reward):
    options = ["--reward_funcs", "my_rewards.length", f"my_rewards.{reward}", "--reward_timeout", "2"]
    run = Run("cispo.py", tiny, tmp_path / "run", *options)
    assert all(run.end(processes=2))  # with 1, or by an abort of torch's threads
    assert f"error: reward '{reward}' has not returned after 2 s (reward_timeout) on process 1" in run.said(1)
