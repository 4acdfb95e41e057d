"""Two processes under DeepSpeed, whose checkpoints are its own files: killed, they go on as on one process."""

import signal

import pytest
import torch

from tests.resilience.runs import Run

KILLS = [("in generation", 3, 0), ("in a file", 1, 1), ("in backward", 6, 1), ("before the seal", 1, 0)]
MORE_KILLS = [("in a file", 2, 0), ("before rotation", 1, 0), ("in rotation", 1, 0), ("in a log", 1, 0)]
CASES = [("cispo.py", "zero3", KILLS)]
FULL = [(recipe, stage, KILLS + MORE_KILLS) for stage in ("zero2", "zero3") for recipe in ("cispo.py", "ppo.py")]


@pytest.mark.parametrize(
    ("recipe", "stage", "kills"), [*CASES, *(pytest.param(*case, marks=pytest.mark.full) for case in FULL)]
)
def test_killed_at_each_moment_a_run_ends_as_if_it_had_not_been(recipe, stage, kills, tiny, tmp_path):
    config = f"cpu_2proc_{stage}"
    whole = Run(recipe, tiny, tmp_path / "whole", config=config)
    assert whole.end(processes=2) == [0, 0], whole.said()
    run = Run(recipe, tiny, tmp_path / "run", config=config)
    for moment, count, rank in kills:
        codes = run.end(moment, count, processes=2, on=rank)
        print(moment, codes, run.checkpoints())
        assert codes[rank] == -signal.SIGKILL, run.said(rank)
        assert codes[1 - rank] != 0
    assert run.end(processes=2) == [0, 0], run.said()
    assert "Resuming from out/checkpoint-" in run.said()
    assert run.steps() == whole.steps() == 10
    assert run.weights().keys() == whole.weights().keys()
    assert all(torch.equal(run.weights()[name], tensor) for name, tensor in whole.weights().items())
    assert run.metrics() == whole.metrics()
    assert run.checkpoints() == whole.checkpoints()
