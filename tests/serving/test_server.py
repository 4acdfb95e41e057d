import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import websockets
from websockets.asyncio.client import connect
from websockets.sync.client import connect as connect_now

from tests.serving.playing import serving, until
from trl_ext.errors import ConfigError
from trl_ext.serving import messages as protocol
from trl_ext.serving.ledger import Rules
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.server import RolloutServer

HELLO = protocol.Hello(protocol=protocol.PROTOCOL).model_dump_json()
STOPPED_BY_SIGNAL = """
import sys, time
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.server import RolloutServer
with RolloutServer(ServerOptions(port=0)) as server:
    print(server.port, flush=True)
    server.desk.ask([("row", {})], "env", 0)
    while not server.desk.pendings:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(600)
"""


def address(server, name="w"):
    return server.url.replace("http", "ws") + f"/ws/{name}"


def kinds(connection, seconds=60.0):
    """The types of the messages up to the connection's end."""
    said = []
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            said.append(json.loads(connection.recv(timeout=seconds))["type"])
    return said


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_a_signal_tells_workers_answers_who_waits_and_closes(number):
    command = [sys.executable, "-c", STOPPED_BY_SIGNAL]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as program:
        try:
            port = int(program.stdout.readline())
            body = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions", body, {"Content-Type": "application/json"}
            )
            with connect_now(f"ws://127.0.0.1:{port}/ws/w") as worker:
                worker.send(HELLO)
                assert json.loads(worker.recv(timeout=60))["type"] == "welcome"

                async def both():
                    asking = asyncio.create_task(asyncio.to_thread(_code, request))
                    await asyncio.to_thread(program.stdout.readline)  # that somebody waits for the policy
                    program.send_signal(number)
                    return await asking

                assert asyncio.run(both()) == 503
                assert kinds(worker) == ["lease", "stopping"]
            assert program.wait(60) == (143 if number == signal.SIGTERM else -signal.SIGINT)
        finally:
            program.kill()


def _code(request):
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_server_that_was_closed_can_be_started_again():
    server = RolloutServer(ServerOptions(port=0))
    for _ in range(2):
        with server, connect_now(address(server)) as worker:
            worker.send(HELLO)
            assert json.loads(worker.recv(timeout=60))["type"] == "welcome"
            assert _code(urllib.request.Request(server.url + "/status")) == 200


def test_an_address_that_is_taken_is_refused():
    with serving() as server, pytest.raises(ConfigError, match=rf"127.0.0.1:{server.port} cannot be served: Address"):
        RolloutServer(ServerOptions(port=server.port), Rules()).start()


def test_a_second_worker_of_a_name_takes_the_place_of_the_first():
    with serving() as server:
        server.desk.ask([("row", {})], "env", 0)
        with connect_now(address(server)) as first:
            first.send(HELLO)
            assert json.loads(first.recv(timeout=60))["type"] == "welcome"
            with connect_now(address(server)) as second:
                second.send(HELLO)
                assert kinds(first)[0] == "lease"
                assert [json.loads(second.recv(timeout=60))["type"] for _ in range(2)] == ["welcome", "lease"]
                assert list(server.desk.ledger.holders) == ["w"]
        with server.desk.changed:
            (ticket,) = [*server.desk.ledger.running.values(), *server.desk.ledger.queue]
        assert ticket.attempt >= 2


def test_a_worker_too_many_is_told_to_come_later():
    with serving(max_workers=1) as server, connect_now(address(server)) as first:
        first.send(HELLO)
        first.recv(timeout=60)
        with connect_now(address(server, "v")) as second:
            second.send(HELLO)
            assert kinds(second) == ["refused"]
            assert second.close_code == 1013


def test_a_worker_that_is_silent_loses_its_episodes():
    with serving({"heartbeat": 0.1}) as server:
        server.desk.ask([("row", {})], "env", 0)
        with connect_now(address(server)) as silent:
            silent.send(HELLO)
            assert "over" in kinds(silent)  # and is closed, so that it may come again
        assert server.desk.ledger.counters.requeued == 1


def test_many_connections_come_and_go_and_leave_nothing_behind():
    async def visit(server, number):
        with contextlib.suppress(websockets.WebSocketException, OSError):
            async with connect(address(server, f"w{number}")) as connection:
                if number % 3:
                    await connection.send(HELLO if number % 2 else "{")
                if number % 5 == 0 and number % 3:
                    await connection.recv()

    async def all_of_them(server):
        await asyncio.gather(*(visit(server, number) for number in range(60)))

    with serving() as server:
        server.desk.ask([(f"row {n}", {}) for n in range(10)], "env", 0)
        asyncio.run(all_of_them(server))
        until(
            lambda: not server._uvicorn.server_state.tasks
        )  # what was said last may be read after its sender has gone
        assert not server.desk.ledger.holders
        assert not server.desk._links
        assert len(server.desk.ledger.queue) + server.desk.ledger.counters.failed == 10


@pytest.mark.parametrize("text", ["8000", "localhost", "host:port", ":8000"])
def test_the_recipe_refuses_what_is_no_address(text):
    from trl_ext.recipe.agent_rollout import address as parsed

    with pytest.raises(ConfigError, match=re.escape(f"serve = {text!r}: must be HOST:PORT")):
        parsed(text)


def test_the_recipe_reads_addresses():
    from trl_ext.recipe.agent_rollout import address as parsed

    assert parsed("0.0.0.0:8000") == ("0.0.0.0", 8000)
    assert parsed("[::1]:80") == ("::1", 80)
