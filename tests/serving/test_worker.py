import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.agents.talk import ROWS, Faulty, Talk
from tests.serving import loopback
from tests.serving.loopback import kept_port, reverse_proxy
from tests.serving.playing import PatientStepper, play, remote_trainer, serving, until, workers
from trl_ext.cli import main
from trl_ext.errors import ConfigError, ServerError
from trl_ext.serving.worker import Worker

COMMAND = [sys.executable, "-c", "from trl_ext.cli import main; main()", "worker"]


def test_a_worker_comes_back_when_the_server_has_gone_and_is_there_again(tiny):
    """It gives up after so long without a server: the time with one does not count."""
    now = 0.0
    with (
        kept_port() as port,
        serving(port=port) as server,
        workers(server, give_up=2.0, clock=lambda: now) as (worker,),
    ):
        until(lambda: worker._welcome)
        now = 2.1
        server.close()
        with serving(port=port) as again:
            until(lambda: again.desk.ledger.holders)
            output = play(remote_trainer(tiny, again), ROWS.select(range(4)))
    assert all(one.failure is None for one in output["trajectory"])
    assert again.desk.run != server.desk.run


def test_a_worker_that_drains_ends_what_it_plays_and_takes_no_more(tiny):
    begun, heard, drained = threading.Event(), threading.Event(), []

    class Slow(Talk):
        def reset(self, **row):
            begun.set()
            heard.wait(60)
            return super().reset(**row)

    with serving() as server, workers(server, Slow, concurrency=2) as (first,):

        def drain():
            begun.wait(60)
            loop = first._plays[next(iter(first._plays))].task.get_loop()
            loop.call_soon_threadsafe(first.drain)
            until(lambda: server.desk.ledger.holders["worker-0"].draining)
            heard.set()
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


def test_what_goes_wrong_in_an_environment_is_said_and_an_environment_is_used_again_unless_it_failed(tiny, monkeypatch):
    monkeypatch.setattr("trl_ext.serving.worker.Stepper", PatientStepper)
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


@pytest.mark.parametrize(
    ("path", "token", "words"),
    [
        ("", None, "401: is the token right"),
        ("", "wrong-token", "401: is the token right"),
        ("/nowhere", "the-right-token", "403: is the address right"),
    ],
)
def test_a_worker_without_the_right_token_or_address_gives_up_at_once(path, token, words):
    with serving(token="the-right-token") as server:
        worker = Worker(server.url + path, Talk, token=token)
        with pytest.raises(ServerError, match=words):
            asyncio.run(worker.run())


def test_a_worker_plays_through_a_reverse_proxy_under_a_path(tiny):
    with (
        serving(token="the-right-token") as server,
        loopback.serving(reverse_proxy("/team/rollouts/", server.url + "/")) as outside,
    ):
        stranger = Worker(outside + "team/rollouts", Talk, token="wrong-token")
        with pytest.raises(ServerError, match=r"/team/rollouts/ws/.*401: is the token right"):
            asyncio.run(stranger.run())
        with workers(server, url=outside + "team/rollouts/"):
            output = play(remote_trainer(tiny, server), ROWS.select(range(4)))
    assert all(one.failure is None for one in output["trajectory"])


class Unsayable(Talk):
    """What it raises or says cannot be sent as it is."""

    def reset(self, **row):
        if row["seed"] == 0:
            raise FileNotFoundError("no \udcff.txt")  # a file's name that is no UTF-8
        return "a" * 5000 if row["seed"] == 1 else super().reset(**row)


def test_what_cannot_be_sent_fails_its_episode_and_no_other(tiny):
    with serving(max_message=2000) as server, workers(server, Unsayable) as (worker,):
        first, second, third = play(remote_trainer(tiny, server, {"max_failures": 1.0}), ROWS.select(range(3)))[
            "trajectory"
        ]
    assert first.failure == r"reset: FileNotFoundError: no \udcff.txt"
    assert re.match(r"reset: EnvironmentStepError: a message of 50\d\d bytes: the server takes 2000", second.failure)
    assert third.failure is None
    assert server.desk.ledger.counters.requeued == 0
    assert worker.played == 1


def test_a_worker_that_is_told_twice_to_stop_gives_back_what_it_plays(tiny):
    begun, go = threading.Event(), threading.Event()

    class Slow(Talk):
        def reset(self, **row):
            begun.set()
            go.wait(60)
            return super().reset(**row)

    def stop():
        begun.wait(60)
        loop = next(iter(worker._plays.values())).task.get_loop()
        for _ in range(2):
            loop.call_soon_threadsafe(worker.drain)

    with serving({"max_attempts": 1}) as server, workers(server, Slow) as (worker,):
        thread = threading.Thread(target=stop)
        thread.start()
        (one,) = play(remote_trainer(tiny, server, {"max_failures": 1.0}), ROWS.select([0]))["trajectory"]
        thread.join()
        go.set()
    assert one.failure == "reset: lost 1 times, the last time because worker-0 gave it back"


def test_a_worker_shows_that_it_is_there_while_its_environment_takes_its_time(tiny):
    beats = []

    class Slow(Talk):
        def step(self, action):
            until(lambda: len(beats) > 2)
            return super().step(action)

    with serving({"heartbeat": 0.05}) as server, workers(server, Slow):
        ledger, heard = server.desk.ledger, server.desk.ledger.heard
        ledger.clock = lambda: 0.0  # nobody is given up, however long this machine stands still
        ledger.heard = lambda id: (beats.append(id), heard(id))
        (one,) = play(remote_trainer(tiny, server), ROWS.select([0]))["trajectory"]
    assert one.failure is None


def test_workers_of_one_process_or_of_containers_that_look_the_same_have_names_of_their_own():
    assert len({Worker("http://localhost", Talk).name for _ in range(20)}) == 20


def test_a_worker_without_a_server_gives_up_when_it_was_told_so():
    worker = Worker("http://127.0.0.1:9", Talk, give_up=0.1)
    with pytest.raises(ServerError, match=r"ws://127.0.0.1:9/ws/.*: no server for 0.1 s"):
        asyncio.run(worker.run())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server": "localhost:8000"}, "--server 'localhost:8000': must be an address such as http://HOST:8000"),
        ({"server": "http://localhost:80000"}, "--server 'http://localhost:80000': must be an address"),
        ({"server": "http://localhost:port"}, "--server 'http://localhost:port': must be an address"),
        ({"server": "http://localhost/?token=x"}, "--server 'http://localhost/?token=x': must be an address"),
        ({"token": "of-a-file\n"}, "token: must have at least 8 printable ASCII characters"),
        ({"concurrency": 0}, "concurrency = 0: must be from 1 to 10000"),
        ({"concurrency": 10_001}, "concurrency = 10001: must be from 1 to 10000"),
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
                said, log = worker.communicate(timeout=60)
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
