"""What an attacker tries at the gate, beyond what test_gate.py has: every route, every origin, every answer."""

import hmac
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from tests.serving.demo import DemoDesk
from trl_ext.serving import gate
from trl_ext.serving.app import create_app
from trl_ext.serving.options import ServerOptions

TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
WRONG = {
    "none": {},
    "another": {"Authorization": "Bearer another-token-of-them"},
    "its beginning": {"Authorization": f"Bearer {TOKEN[:-1]}"},
    "more than it": {"Authorization": f"Bearer {TOKEN}x"},
    "another case": {"Authorization": f"Bearer {TOKEN.upper()}"},
    "no scheme": {"Authorization": TOKEN},
    "another scheme": {"Authorization": f"Basic {TOKEN}"},
    "not ASCII": {"Authorization": "Bearer \xe4\xf6\xfc".encode("latin-1")},
    "a cookie": {"Cookie": f"token={TOKEN}"},
}
FOREIGN = (
    "https://evil.example",
    "http://localhost.evil.example",
    "http://evil.example#localhost",
    "http://localhost@evil.example",
    "http://localhost:81",
    "null",
    "",
    "file://",
)
LET_IN = 1013
OPEN = {"/", "/health", "/page/{name}"}


def client(token: str | None = TOKEN, host: str = "localhost", desk: Any = None, **options: Any) -> TestClient:
    app = create_app(desk or DemoDesk(), ServerOptions(token=token, **options))
    return TestClient(app, base_url=f"http://{host}")


def socket_status(here: TestClient, headers: dict[str, Any], query: str = "") -> int:
    """The status that a handshake is refused with; LET_IN where it gets to the demo's desk, which has no use for it."""
    headers = {"Host": here.base_url.netloc.decode()} | headers
    with pytest.raises(WebSocketDisconnect) as closed, here.websocket_connect("/ws/w" + query, headers=headers):
        pass
    if isinstance(closed.value, WebSocketDenialResponse):
        return int(closed.value.status_code)
    return closed.value.code


def routes(kind: type) -> Iterator[Any]:
    found = [route for route in client().app.routes if isinstance(route, kind)]
    assert found
    return iter(found)


def test_no_route_was_forgotten_and_no_address_carries_a_token():
    here = client()
    asked = 0
    for route in routes(APIRoute):
        path = route.path.replace("{name}", "page.js").replace("{id}", "3-demo").replace("{lease}", "x")
        for method in route.methods - {"HEAD"}:
            for end in ("", f"?token={TOKEN}&access_token={TOKEN}"):
                refused = here.request(method, path + end).status_code == 401
                assert refused == (route.path not in OPEN), (method, path)
                asked += refused
            assert here.request(method, path, headers=BEARER).status_code != 401
    assert asked > 10
    assert [route.path for route in routes(APIWebSocketRoute)] == ["/ws/{client_id}"]


@pytest.mark.parametrize("header", WRONG.values(), ids=WRONG)
def test_a_token_that_is_almost_right_is_wrong(header):
    here = client()
    assert here.get("/status", headers=header).status_code == 401
    assert socket_status(here, headers=header, query=f"?token={TOKEN}") == 401
    assert socket_status(here, headers=BEARER) == LET_IN


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []

    def spy(given: bytes, right: bytes) -> bool:
        compared.append((given, right))
        return hmac.compare_digest(given, right)

    monkeypatch.setattr(gate, "hmac", type("Spied", (), {"compare_digest": staticmethod(spy)}))
    for given in (TOKEN, TOKEN[:3], "x" * 1000):
        client().get("/status", headers={"Authorization": f"Bearer {given}"})
    assert compared == [(given.encode(), TOKEN.encode()) for given in (TOKEN, TOKEN[:3], "x" * 1000)]


@pytest.mark.parametrize("origin", FOREIGN)
def test_pages_of_other_origins_can_change_nothing(origin):
    for token, header in ((None, {}), (TOKEN, BEARER)):
        here = client(token)
        headers = {**header, "Origin": origin}
        for path in ("/v1/chat/completions", "/episodes/claim", "/episodes/x/result"):
            answer = here.post(path, headers=headers, json={})
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "forbidden_origin"
        preflight = here.options("/episodes/claim", headers=headers | {"Access-Control-Request-Method": "POST"})
        assert preflight.status_code == 403
        assert socket_status(here, headers=headers) == 403
        # What they may ask for they cannot read: no answer allows it
        answer = here.get("/status", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_the_pages_own_origin_and_those_that_are_allowed_may():
    for host, origin in (
        ("localhost", "http://localhost"),
        ("localhost:8000", "http://localhost:8000"),
        ("127.0.0.1:8000", "https://rollouts.example"),
        ("127.0.0.1:8000", "http://lab.example:3000"),
    ):
        options = {"public_url": "https://rollouts.example/team/", "allowed_origins": ("http://lab.example:3000/",)}
        here = client(None, host, **options)
        assert here.post("/episodes/claim", headers={"Origin": origin}, json={}).status_code != 403
        assert socket_status(here, headers={"Origin": origin}) == LET_IN


@pytest.mark.parametrize("host", ["evil.example:8000", "localhost.evil.example", "0.0.0.0", "["])
def test_a_name_that_was_bent_to_loopback_reaches_not_even_the_page(host):
    """DNS rebinding: the browser takes a page of evil.example for the server's own, but names it in the Host header."""
    here = client(None)
    for header in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        for path in ("/", "/page/page.js", "/status", "/health"):
            assert here.get(path, headers=header).status_code == 403
        assert socket_status(here, headers=header) == 403


def test_every_answer_forbids_what_the_page_does_not_need():
    here = client(max_message=1000)
    asked = [
        here.get("/"),
        here.get("/page/page.js"),
        here.get("/page/none.js"),
        here.get("/status"),
        here.get("/status", headers=BEARER),
        here.get("/metrics", headers=BEARER),
        here.get("/nothing", headers=BEARER),
        here.post("/v1/chat/completions", headers=BEARER, content=b"x" * 2000),
        here.post("/v1/chat/completions", headers=BEARER, content=b"{"),
        here.post("/episodes/claim", headers={"Origin": "http://evil.example"}),
    ]
    assert [answer.status_code for answer in asked] == [200, 200, 404, 401, 200, 200, 404, 413, 400, 403]
    for answer in asked:
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
        assert policy["require-trusted-types-for"] == "'script'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert "html" not in answer.headers["content-type"] or answer.request.url.path == "/"


DEEP = {
    "arrays that never end": "[" * 200_000,
    "arrays": "[" * 100_000 + "]" * 100_000,
    "objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "in a message": '{"messages":[{"role":"user","content":' + "[" * 900 + "]" * 900 + "}]}",
    "in a list of parts": '{"messages":[{"role":"user","content":[' + '{"type":' * 400 + "1" + "}" * 400 + "]}]}",
    "a number of 5,000 digits": '{"reward":' + "9" * 5000 + "}",
    "no number": '{"reward":NaN}',
    "lone surrogates": '{"agent":"\\ud800","\\udfff":1}',
    "no UTF-8": b'{"agent":"\xff\xfe"}',
    "nothing": "",
    "no object": "3",
}


@pytest.mark.parametrize("body", DEEP.values(), ids=DEEP)
def test_deep_and_broken_json_is_refused_in_one_line(body):
    here = client()
    for path in ("/v1/chat/completions", "/episodes/claim", "/episodes/x/result", "/episodes/x/v1/chat/completions"):
        answer = here.post(path, headers=BEARER, content=body)
        assert answer.status_code == 400, (path, answer.text)
        message = answer.json()["error"]["message"]
        assert "\n" not in message
        assert len(message) <= 300


@pytest.mark.parametrize("number", ["inf", "nan"])
def test_a_number_that_json_has_not_hides_no_status(number):
    desk = DemoDesk()
    status, episode = desk.status(), desk.episode(desk.status().finished[0].id)
    status.finished[0].reward = episode.reward = float(number)
    desk.status, desk.episode = lambda: status, lambda id: episode
    here = client(None, desk=desk)
    assert here.get("/status").json()["finished"][0]["reward"] is None
    assert here.get("/episodes/1").json()["reward"] is None
