import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.agents.talk import ROWS, Faulty, Talk
from tests.serving.playing import play, remote_trainer, serving, workers
from trl_ext.cli import main
from trl_ext.errors import ConfigError, ServerError
from trl_ext.serving.ledger import Rules
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.server import RolloutServer
from trl_ext.serving.worker import Worker

COMMAND = [sys.executable, "-c", "from trl_ext.cli import main; main()", "worker"]


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_a_worker_comes_back_when_the_server_has_gone_and_is_there_again(tiny):
    """It gives up after so long without a server: the time with one does not count."""
    with serving() as server, workers(server, give_up=2.0):
        until(lambda: server.desk.ledger.holders)
        time.sleep(2.1)
        server.close()
        again = RolloutServer(ServerOptions(port=server.port), Rules())
        with again:
            output = play(remote_trainer(tiny, again), ROWS.select(range(4)))
    assert all(one.failure is None for one in output["trajectory"])
    assert again.desk.run != server.desk.run


def test_a_worker_that_drains_ends_what_it_plays_and_takes_no_more(tiny):
    both, drained = threading.Event(), []

    class Slow(Talk):
        def reset(self, **row):
            both.set()
            time.sleep(0.3)
            return super().reset(**row)

    with serving() as server, workers(server, Slow, concurrency=2) as (first,):

        def drain():
            both.wait(20)
            loop = first._plays[next(iter(first._plays))].task.get_loop()
            loop.call_soon_threadsafe(first.drain)
            until(lambda: server.desk.ledger.holders["worker-0"].draining)
            with workers(server, concurrency=1, first=1) as (second,):
                until(lambda: server.desk.ledger.counters.done == 6)
            drained.append(second)

        thread = threading.Thread(target=drain)
        thread.start()
        output = play(remote_trainer(tiny, server), ROWS.select(range(6)))
        thread.join()
    assert all(one.failure is None for one in output["trajectory"])
    assert (first.played, drained[0].played) == (2, 4)
    assert server.desk.ledger.counters.requeued == 0


def test_what_goes_wrong_in_an_environment_is_said_and_an_environment_is_used_again_unless_it_failed(tiny):
    made = []

    class Numbered(Faulty):
        def __init__(self):
            made.append(self)

    with serving() as server, workers(server, Numbered, concurrency=1, step_timeout=0.3):
        output = play(remote_trainer(tiny, server, {"max_failures": 1.0}), ROWS.select(range(0, 26)))
    failures = {one.row["seed"]: one.failure for one in output["trajectory"] if one.failure}
    assert failures == {
        0: "turn 1: ValueError: broken pipe",
        5: "turn 1: TimeoutError: step took longer than step_timeout = 0.3 s",
        10: "turn 1: EnvironmentStepError: step returned 'nonsense': must be (observation, reward, terminated, "
        "truncated, info)",
        15: "turn 1: EnvironmentStepError: step returned the reward nan: must be a finite number",
        20: "turn 1: RuntimeError: the environment raised SystemExit",
        25: "reset: OSError: no such mailbox",
    }
    assert len(made) == 6  # the last failure needs none after it
    assert server.desk.ledger.counters.failed == 6


@pytest.mark.parametrize(("token", "words"), [(None, "401: is the token right"), ("wrong-token", "401: is the token")])
def test_a_worker_without_the_right_token_gives_up_at_once(token, words):
    with serving(token="the-right-token") as server:
        worker = Worker(server.url, Talk, token=token)
        with pytest.raises(ServerError, match=words):
            asyncio.run(worker.run())


def test_a_worker_without_a_server_gives_up_when_it_was_told_so():
    worker = Worker("http://127.0.0.1:9", Talk, give_up=0.1)
    with pytest.raises(ServerError, match=r"ws://127.0.0.1:9/ws/.*: no server for 0.1 s"):
        asyncio.run(worker.run())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server": "localhost:8000"}, "--server 'localhost:8000': must be an address such as http://HOST:8000"),
        ({"concurrency": 0}, "concurrency = 0: must be at least 1"),
        ({"step_timeout": 0}, "step_timeout = 0: must be greater than 0 (seconds), or None"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Worker(**{"server": "http://localhost", "env_factory": Talk, **options})


def test_the_command_plays_until_it_is_told_to_stop(tiny):
    with serving(token="the-right-token") as server:
        environment = {**os.environ, "TRL_EXT_TOKEN": "the-right-token"}
        command = [*COMMAND, "--server", server.url, "--env", "tests.agents.talk:Talk", "--concurrency", "8"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2], **pipes) as worker:
            try:
                rollout = {"environment": "tests.agents.talk:Talk"}
                output = play(remote_trainer(tiny, server, rollout), ROWS.select(range(8)))
                worker.send_signal(signal.SIGTERM)
                said, log = worker.communicate(timeout=20)
            finally:
                worker.kill()
    assert all(one.failure is None for one in output["trajectory"])
    assert said == b"8 episodes played\n"
    assert worker.returncode == 0
    assert b"connected as" in log
    assert b"the-right-token" not in log


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--server", "http://localhost", "--env", "chess"], "no environment 'chess'"),
        (["--server", "http://localhost", "--env", "grid_world", "--env_options", "[]"], "must be a JSON object"),
        (["--server", "localhost", "--env", "grid_world"], "--server 'localhost': must be an address"),
        (["--server", "http://localhost", "--env", "grid_world", "--name", "a/b"], "--name 'a/b': letters"),
    ],
)
def test_the_command_refuses_bad_arguments_in_one_line(arguments, words):
    with pytest.raises(SystemExit, match=re.escape(words)) as ending:
        main(["worker", *arguments])
    assert "\n" not in str(ending.value)
