"""Any bytes, any JSON and any nearly right message: taken or refused in one line, and the desk goes on."""

import asyncio
import json

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trl_ext.serving import messages as protocol
from trl_ext.serving.app import create_app
from trl_ext.serving.desk import Desk
from trl_ext.serving.ledger import Rules
from trl_ext.serving.messages import from_worker
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.server import Floor
from trl_ext.serving.worker_socket import WorkerSocket

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KINDS = ("hello", "opened", "stepped", "failed", "returned", "heartbeat", "draining")
LEASES = st.sampled_from(["1-LEASE.1", "2-LEASE.1", "9-zzz.1", "../etc", ""])
NEARLY = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)},
    optional={
        "lease": LEASES | VALUES,
        "turn": st.integers(0, 3) | VALUES,
        "reward": st.floats(-1, 1) | VALUES,
        "terminated": st.booleans() | VALUES,
        "truncated": st.booleans() | VALUES,
        "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": VALUES}), max_size=2) | VALUES,
        "info": st.dictionaries(st.text(max_size=5), VALUES, max_size=2),
        "error": st.text(max_size=20) | VALUES,
        "protocol": st.just(1) | VALUES,
        "concurrency": st.just(1) | VALUES,
    },
)
FRAMES = (
    st.binary(max_size=40).map(lambda data: {"type": "websocket.receive", "bytes": data})
    | st.text(max_size=40).map(lambda text: {"type": "websocket.receive", "text": text})
    | (VALUES | NEARLY).map(lambda value: {"type": "websocket.receive", "text": json.dumps(value)})
)
QUIET = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class FakeSocket:
    """Gives the frames one after the other, then goes."""

    client_state = None

    def __init__(self, frames):
        self.frames, self.sent = list(frames), []

    async def accept(self):
        pass

    async def receive(self):
        await asyncio.sleep(0)
        if self.frames:
            return self.frames.pop(0)
        return {"type": "websocket.disconnect", "code": 1000}

    async def send_text(self, text):
        self.sent.append(json.loads(text))

    async def close(self, code):
        pass


def desk_with_episodes(count=2):
    desk = Desk(Rules(), ServerOptions())
    desk.ask([(f"row {number}", {"seed": number}) for number in range(count)], "env", 0)
    return desk


@QUIET
@given(st.lists(FRAMES, max_size=6), st.booleans())
def test_a_worker_may_say_anything(frames, greets):
    desk = desk_with_episodes()
    for frame in frames:
        if "text" in frame:
            frame["text"] = frame["text"].replace("LEASE", desk.run)
    hello = {"type": "websocket.receive", "text": protocol.Hello(protocol=1, concurrency=2).model_dump_json()}
    socket = FakeSocket([hello, *frames] if greets else frames)
    asyncio.run(WorkerSocket(desk, socket, "w").serve())
    counters = desk.ledger.counters
    assert counters.asked == 2 == counters.done + counters.failed + counters.dropped + counters.open
    assert not desk.ledger.running, "it has gone: what it had is in the queue again, or ended"
    assert not desk.ledger.holders
    assert all("\n" not in message["error"] for message in socket.sent if message["type"] == "refused")


@QUIET
@given(NEARLY)
def test_a_message_that_is_taken_is_what_it_says(value):
    text = json.dumps(value)
    try:
        message = from_worker.validate_json(text)
    except ValueError:
        return
    assert json.loads(message.model_dump_json(exclude_unset=True)).items() <= {**value, "type": value["type"]}.items()


@pytest.fixture(scope="module")
def client():
    desk = desk_with_episodes(0)
    with TestClient(create_app(Floor(desk), ServerOptions(burst=10**9)), base_url="http://localhost") as found:
        found.desk = desk
        yield found


@QUIET
@given(
    body=st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()),
    path=st.sampled_from(["/v1/chat/completions", "/episodes/claim", "/episodes/1-x.1/result", "/episodes/1-x.1/v1/x"]),
    kind=st.sampled_from(
        ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
    ),
)
def test_an_agent_may_post_anything(client, body, path, kind):
    reply = client.post(path, content=body, headers={"Content-Type": kind})
    assert 400 <= reply.status_code < 500 or (path == "/episodes/claim" and reply.status_code == 503)
    assert reply.json()["error"]["message"]


@QUIET
@given(st.text(max_size=30))
def test_any_name_of_an_episode_is_looked_for_or_refused(client, name):
    from urllib.parse import quote

    reply = client.get(f"/episodes/{quote(name, safe='')}")
    assert reply.status_code in (400, 404, 405)
    assert reply.json()["error"]


def test_workers_of_another_protocol_are_sent_away_with_a_reason():
    socket = FakeSocket([{"type": "websocket.receive", "text": '{"type": "hello", "protocol": 2}'}])
    desk = desk_with_episodes()
    asyncio.run(WorkerSocket(desk, socket, "w").serve())
    assert socket.sent == [
        {"type": "refused", "error": "protocol 2: this server speaks 1; install the same trl-ext on both sides"}
    ]
    assert not desk.ledger.holders


def test_a_worker_that_says_nothing_sensible_is_sent_away():
    hello = {"type": "websocket.receive", "text": protocol.Hello(protocol=1).model_dump_json()}
    socket = FakeSocket([hello] + [{"type": "websocket.receive", "text": "{"}] * 1000)
    desk = desk_with_episodes()
    asyncio.run(WorkerSocket(desk, socket, "w").serve())
    assert 40 < 1000 - len(socket.frames) < 500  # 50, and one more for each second
    assert desk.ledger.counters.garbage == 1000 - len(socket.frames)
