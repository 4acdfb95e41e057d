"""The agent recipe with its episodes played elsewhere, as users run it: the grid world is learnt as in one process."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.serving.loopback import kept_port
from trl_ext.agents.trajectory import read_trajectories

ROOT = Path(__file__).parents[2]
WORKER = [sys.executable, "-c", "from trl_ext.cli import main; main()", "worker", "--env", "grid_world"]
SCRIPT = [sys.executable, str(Path(__file__).with_name("openai_agent.py"))]


@pytest.fixture
def port():
    with kept_port() as port:
        yield port


def players(kind, url):
    """The command lines of who plays."""
    if kind == "workers":
        options = ["--env_options", '{"min_distance": 5}', "--concurrency", "64"]
        return [[*WORKER, "--server", url, "--name", f"worker-{number}", *options] for number in range(4)]
    return [[*SCRIPT, url, "32"]]


def wait_for(url, trainer):
    while trainer.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)


def stop(running):
    for one in running:
        one.kill()
        one.wait()


@pytest.mark.full
def test_workers_come_back_to_a_run_that_was_killed_and_is_resumed_from_its_checkpoint(tmp_path, port):
    url = f"http://127.0.0.1:{port}"
    options = ["--max_steps", "8", "--save_strategy", "steps", "--save_steps", "2", "--heldout_episodes", "0"]
    recipe = [sys.executable, str(ROOT / "recipes" / "agent.py"), "--serve", f"127.0.0.1:{port}", "--use_cpu", "true"]
    command = [*recipe, *options, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "auto"]
    running = [subprocess.Popen(player, stderr=subprocess.DEVNULL) for player in players("workers", url)]
    try:
        with (tmp_path / "log").open("w") as log:
            killed = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
            running.append(killed)
            while killed.poll() is None and not (tmp_path / "checkpoint-4").is_dir():
                time.sleep(0.1)
            killed.kill()
            assert killed.wait() < 0
            resumed = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
            running.append(resumed)
            assert resumed.wait() == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        stop(running)
    episodes = read_trajectories(tmp_path / "trajectories")
    assert {one.step for one in episodes} == {0, 2, 4, 6}
    assert all(one.failure is None for one in episodes)
    assert len([one for one in episodes if one.step == 6]) == 256


@pytest.mark.full
@pytest.mark.parametrize("kind", ["workers", "openai"])
def test_the_grid_world_is_learnt_from_episodes_that_are_played_elsewhere(kind, tmp_path, port):
    """Four worker processes, or a script with the official client that knows nothing of trl-ext."""
    url = f"http://127.0.0.1:{port}"
    recipe = [sys.executable, str(ROOT / "recipes" / "agent.py"), "--serve", f"127.0.0.1:{port}", "--use_cpu", "true"]
    running = []
    with (tmp_path / "log").open("w") as log:
        trainer = subprocess.Popen([*recipe, "--output_dir", str(tmp_path)], stdout=log, stderr=log, cwd=ROOT)
        running.append(trainer)
        try:
            wait_for(url, trainer)
            clean = {name: value for name, value in os.environ.items() if kind == "workers" or name != "PYTHONPATH"}
            running += [
                subprocess.Popen(command, stderr=subprocess.DEVNULL, env=clean) for command in players(kind, url)
            ]
            assert trainer.wait() == 0, (tmp_path / "log").read_text()[-3000:]
        finally:
            stop(running)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["heldout_before"] <= 0.3
    assert summary["heldout_after"] >= 0.8
    assert all(one.failure is None for one in read_trajectories(tmp_path / "trajectories"))
