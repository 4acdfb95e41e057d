import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.serving.playing import remote_trainer, serving
from tests.serving.unruly import UnrulyProxy
from trl_ext.agents.trajectory import TrajectoryRecorder, read_trajectories

ROOT = Path(__file__).parents[2]


def train(path, server, folder, steps, **options):
    trainer = remote_trainer(
        path,
        server,
        {"recorder": TrajectoryRecorder(folder / "episodes", ["jsonl"]), "max_failures": 0.2},
        config_options={
            "max_steps": steps,
            "per_device_train_batch_size": 16,
            "save_strategy": "steps",
            "save_steps": 1,
            "output_dir": str(folder / "run"),
        },
    )
    trainer.train(**options)
    return trainer


def check_accounts(server, asked):
    counters = server.desk.ledger.counters
    assert counters.asked == counters.done + counters.failed + counters.dropped == asked
    assert counters.open == 0
    assert not server.desk.ledger.running
    assert not server.desk.ledger.queue


@pytest.mark.parametrize("steps", [2, pytest.param(20, marks=pytest.mark.full)])
def test_every_episode_ends_once_with_workers_that_die_messages_in_disorder_and_a_server_that_restarts(
    tiny, tmp_path, steps
):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rules = {"max_attempts": 30, "episode_timeout": 60.0}
    with serving(rules) as server, UnrulyProxy(server.port) as proxy:
        command = [sys.executable, "-m", "tests.serving.mortal_workers", proxy.url, "4"]
        with subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as mortals:
            try:
                first = train(tiny, server, tmp_path, steps)
                server.close()
                with serving(rules) as other:
                    proxy.target = other.port
                    checkpoint = str(tmp_path / "run" / f"checkpoint-{steps}")
                    second = train(tiny, other, tmp_path, 2 * steps, resume_from_checkpoint=checkpoint)
            finally:
                os.killpg(mortals.pid, signal.SIGKILL)  # those that it is about to fork too
                deaths = mortals.stdout.read().decode().count("died")
    assert (first.state.global_step, second.state.global_step) == (steps, 2 * steps)
    check_accounts(server, 16 * steps)
    check_accounts(other, 16 * steps)
    counters = [one.desk.ledger.counters for one in (server, other)]
    assert deaths > 0
    assert sum(one.requeued for one in counters) >= deaths
    assert sum(one.duplicates + one.stale for one in counters) > 0
    assert sum(one.garbage for one in counters) > 0
    assert proxy.did["garbage"] > 0
    assert proxy.did["twice"] > 0
    recorded = read_trajectories(tmp_path / "episodes")
    assert Counter(one.step for one in recorded) == dict.fromkeys(range(2 * steps), 16)
    assert sum(one.failure is None for one in recorded) == sum(one.done for one in counters)
    for one in recorded:  # nothing of a lost attempt, nothing said twice
        if one.failure is None:
            mine = [message for message in one.messages if message["role"] == "assistant"]
            assert len(mine) >= one.turns == len(one.turn_ends)
            assert sum(one.mask) > 0
