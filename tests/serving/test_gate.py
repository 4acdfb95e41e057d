import asyncio
import json
import re

import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from tests.serving.demo import DemoDesk
from trl_ext.errors import ConfigError
from trl_ext.serving.app import create_app
from trl_ext.serving.gate import Gate, Rate
from trl_ext.serving.options import ServerOptions

TOKEN = "a-long-token"
ROUTES = (
    ("GET", "/status"),
    ("GET", "/metrics"),
    ("GET", "/episodes/1-demo"),
    ("GET", "/v1/models"),
    ("GET", "/openapi.json"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/episodes/claim"),
    ("POST", "/episodes/1-demo.1/v1/chat/completions"),
    ("POST", "/episodes/1-demo.1/result"),
    ("GET", "/what/there/is/not"),
)


def client(token=TOKEN, host="localhost", **options):
    desk = DemoDesk()
    found = TestClient(create_app(desk, ServerOptions(token=token, **options)), base_url=f"http://{host}")
    found.desk = desk
    return found


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def error_of(reply):
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_needs_the_token(method, path):
    here = client()
    for headers in (
        {},
        bearer("wrong-token"),
        bearer(""),
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": b"Bearer \xff\xfe"},
    ):
        reply = here.request(method, path, headers=headers)
        assert reply.status_code == 401, headers
        assert error_of(reply)["code"] == "invalid_api_key"
    assert here.request(method, path, headers=bearer(TOKEN)).status_code != 401
    assert here.desk.refused >= 6


def test_the_page_and_the_health_need_none_and_tell_nothing():
    here = client()
    assert here.get("/health").json() == {"status": "ok"}
    assert here.get("/").status_code in (200, 404)
    for path in ("/page/../status", "/page/..%2f..%2fapp.py", "/page/%2e%2e/options.py", "/page//etc/passwd"):
        assert here.get(path).status_code in (401, 404), path


@pytest.mark.parametrize("headers", [{}, bearer("wrong-token")])
def test_a_socket_needs_the_token(headers):
    with pytest.raises(WebSocketDenialResponse) as refusal, client().websocket_connect("/ws/w", headers=headers):
        pass
    assert refusal.value.status_code == 401


def test_pages_of_other_origins_are_refused_and_the_own_and_allowed_ones_are_not():
    here = client(allowed_origins=("https://mine.example.org",), public_url="https://train.example.org/run")
    for origin in ("http://evil.example.org", "null", "http://localhost.evil.org", "http://localhost:81"):
        reply = here.post("/episodes/claim", json={}, headers={"Origin": origin, **bearer(TOKEN)})
        assert (reply.status_code, error_of(reply)["code"]) == (403, "forbidden_origin")
        headers = {"Origin": origin, **bearer(TOKEN)}
        with pytest.raises(WebSocketDenialResponse), here.websocket_connect("/ws/w", headers=headers):
            pass
    for origin in ("http://localhost", "https://mine.example.org", "https://train.example.org"):
        answer = here.post("/episodes/claim", json={}, headers={"Origin": origin, **bearer(TOKEN)})
        assert answer.json()["error"]["code"] == "no_episode"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "localhost:8000"])
def test_without_a_token_this_machines_names_are_answered(host):
    assert client(None, host).get("/status").status_code == 200


@pytest.mark.parametrize("host", ["evil.example.org", "127.0.0.1.evil.org", "192.168.1.2"])
def test_without_a_token_other_names_for_this_machine_are_refused(host):
    """A page of evil.example.org whose name is made to point to 127.0.0.1 has no foreign origin."""
    reply = client(None, host).get("/status")
    assert (reply.status_code, error_of(reply)["code"]) == (403, "forbidden_host")


def test_a_body_is_read_up_to_its_limit():
    here = client(max_message=1000)
    messages = [{"role": "user", "content": "x" * 1000}]
    reply = here.post("/v1/chat/completions", json={"messages": messages}, headers=bearer(TOKEN))
    assert reply.status_code == 413
    assert "more than 1000 bytes" in error_of(reply)["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[" * 100_000,
        b'{"messages":' + b"[" * 50_000,
        b'{"messages": []}',
        b'{"messages": [{"role": "robot", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": NaN}',
        b"\xff\xfe",
    ],
    ids=lambda body: body[:30],
)
def test_a_body_that_makes_no_sense_gets_a_clean_error(body):
    headers = {"Content-Type": "application/json", **bearer(TOKEN)}
    reply = client().post("/v1/chat/completions", content=body, headers=headers)
    assert reply.status_code == 400
    assert error_of(reply)["type"] == "invalid_request_error"
    assert "\n" not in error_of(reply)["message"]


def test_a_client_may_send_so_many_requests_and_is_told_when_to_come_again():
    here = client(rate=0.01, burst=3)
    assert [here.get("/health").status_code for _ in range(4)] == [200, 200, 200, 429]
    reply = here.get("/health")
    assert 1 <= int(reply.headers["Retry-After"]) <= 101
    assert error_of(reply)["code"] == "rate_limit_exceeded"


def test_a_rate_is_a_bucket_that_fills_again():
    now = 0.0
    rate = Rate(2.0, 4, clock=lambda: now)
    assert [rate.wait() for _ in range(4)] == [0.0] * 4
    assert rate.wait() == 0.5
    now = 0.25
    assert rate.wait() == 0.25
    now = 100.0
    assert [rate.wait() for _ in range(5)] == [0.0] * 4 + [0.5]


def test_a_body_that_comes_too_slowly_is_not_waited_for():
    sent = []

    async def app(scope, receive, send):
        raise AssertionError("the route must not see it")

    async def never():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    gate = Gate(app, ServerOptions(read_timeout=0.05), lambda status: None)
    scope = {"type": "http", "path": "/status", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1)}
    asyncio.run(gate(scope, never, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["message"] == "the body took too long"


def test_replies_forbid_what_a_page_does_not_need():
    headers = client().get("/status", headers=bearer(TOKEN)).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "host = '0.0.0.0': a server that others can reach needs a token"),
        ({"host": "example.org"}, "needs a token"),
        ({"token": "short"}, "token: must have at least 8 printable ASCII characters"),
        ({"token": "with\nnewline"}, "token: must have"),
        ({"port": 70000}, "port = 70000: must be from 0 to 65535"),
        ({"max_message": 0}, "max_message = 0: must be greater than 0"),
        ({"public_url": "train.example.org"}, "'train.example.org': must be an address"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ServerOptions(**options)


def test_an_ip_of_loopback_needs_no_token():
    assert ServerOptions(host="127.3.2.1").loopback
    assert ServerOptions(host="::1").loopback
    assert not ServerOptions(host="10.0.0.1", token=TOKEN).loopback
