import os

import pytest

from trl_ext.rewards.cores import own_cores


@pytest.mark.parametrize(
    ("usable", "processes", "cores"), [(64, 1, 16), (12, 1, 12), (64, 8, 8), (12, 8, 1), (4, 8, 1), (1, 1, 1)]
)
def test_training_processes_of_a_machine_share_its_cores(monkeypatch, usable, processes, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(usable)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert own_cores(most=16) == cores
