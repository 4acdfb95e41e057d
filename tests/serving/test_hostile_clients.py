"""The server on a real socket, and clients that want to fill, stall or mislead it."""

import contextlib
import json
import resource
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.serving.playing import until
from tests.serving.raw_clients import (
    BINARY,
    CHUNK,
    CLOSE,
    HEAD,
    HUGE,
    MESSAGE,
    PATIENCE,
    ROOM,
    TEXT,
    TOKEN,
    ask,
    close_code,
    connection,
    exchange,
    frame,
    growing_less_than,
    handshaken,
    heard,
    rest_of,
    say,
    send_much,
    worker,
)
from trl_ext.serving.http_protocol import room_for
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.server import RolloutServer


@pytest.fixture(scope="module")
def server() -> Iterator[RolloutServer]:
    with RolloutServer(ServerOptions(port=0, token=TOKEN, max_message=MESSAGE)) as server:
        yield server


@pytest.fixture(scope="module")
def hasty() -> Iterator[RolloutServer]:
    """Waits for the rest of a request no longer than a test can wait for that."""
    with RolloutServer(ServerOptions(port=0, token=TOKEN, read_timeout=3.0)) as server:
        yield server


@pytest.fixture(autouse=True)
def still_answers(server: RolloutServer) -> Iterator[None]:
    yield
    assert ask(server, "GET", "/health") == (200, b'{"status":"ok"}')


def test_a_body_of_100_mb_is_cut_off_and_takes_no_memory(server):
    line = f"POST /v1/chat/completions HTTP/1.1\r\n{HEAD}"
    for kind in (f"Content-Length: {HUGE}\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"):
        chunk = CHUNK if "Length" in kind else f"{len(CHUNK):x}\r\n".encode() + CHUNK + b"\r\n"
        with growing_less_than(ROOM), connection(server) as client:
            assert send_much(client, (line + kind).encode(), chunk) < HUGE / 2
    with growing_less_than(ROOM), connection(server) as client:  # nobody's: not even read
        begin = f"POST /episodes/claim HTTP/1.1\r\nHost: localhost\r\nContent-Length: {HUGE}\r\n\r\n"
        assert send_much(client, begin.encode()) < HUGE / 2


@pytest.mark.parametrize(
    "begin", ["GET /", "GET / HTTP/1.1\r\nX: ", "GET / HTTP/1.1\r\n"], ids=["target", "one header", "many"]
)
def test_a_head_of_100_mb_is_cut_off_and_takes_no_memory(server, begin):
    chunk = b"X-Name: value\r\n" * 4000 if begin.endswith("\n") else CHUNK
    with growing_less_than(ROOM), connection(server) as client:
        assert send_much(client, begin.encode(), chunk) < HUGE / 2


def test_a_socket_message_of_100_mb_is_cut_off_and_takes_no_memory(server):
    for parts in (frame(TEXT, HUGE), frame(BINARY, HUGE)):
        with growing_less_than(ROOM), worker(server) as (client, _):
            assert send_much(client, parts) < HUGE / 2
    with growing_less_than(ROOM), worker(server) as (client, _):  # in parts that are small enough each
        begin, part = frame(TEXT, 1, final=False) + b"[", frame(0, len(CHUNK), final=False) + CHUNK
        assert send_much(client, begin, part) < HUGE / 2
    with worker(server) as (client, answers):
        client.sendall(frame(TEXT, MESSAGE + 1) + b" " * (MESSAGE + 1))
        assert close_code(answers) == 1009


def test_a_flood_of_messages_is_read_no_faster_than_the_rate_and_takes_no_memory():
    options = ServerOptions(port=0, token=TOKEN, max_message=MESSAGE, rate=0.1, burst=10)
    heartbeat = json.dumps({"type": "heartbeat"}).encode().ljust(MESSAGE - 100)
    with RolloutServer(options) as slow, growing_less_than(ROOM + (16 << 20)), worker(slow) as (client, _):
        client.settimeout(1.0)
        with pytest.raises(TimeoutError):  # the socket is full: the server reads no more for now
            send_much(client, b"", frame(TEXT, len(heartbeat)) + heartbeat)
        assert ask(slow, "GET", "/health")[0] == 200


def test_deep_and_broken_messages_are_refused_and_too_many_end_the_socket(server):
    deep = '{"type":"opened","lease":"x","messages":[{"role":"user","content":' + "[" * 30_000 + "]" * 30_000 + "}]}"
    huge_number = (
        '{"type":"stepped","lease":"x","turn":' + "9" * 5000 + ',"reward":1,"terminated":false,"truncated":false}'
    )
    surrogate = '{"type":"failed","lease":"x","error":"\\ud800"}'
    with worker(server) as (client, answers):
        for message in (
            deep,
            huge_number,
            surrogate,
            "[]",
            "",
            '{"type":"welcome"}',
            '{"type":"hello","protocol":1,"x":1}',
        ):
            say(client, message)
            opcode, answer = next(answers)
            assert (opcode, json.loads(answer)["type"]) == (TEXT, "refused")
            assert len(answer) < 400
        with contextlib.suppress(ConnectionError):  # the server closes it somewhere here
            for _ in range(60):
                say(client, "{")
        assert {opcode for opcode, _ in answers} == {TEXT, CLOSE}


def test_half_open_connections_are_cut_and_stop_nobody_meanwhile(hasty):
    begun = [
        "",
        "G",
        "GET / HTTP/1.1\r\nHost: loc",
        f"POST /episodes/claim HTTP/1.1\r\n{HEAD}Content-Length: 10\r\n\r\n{{",
    ]
    clients = []
    try:
        for number in range(300):
            clients.append(socket.create_connection(("127.0.0.1", hasty.port), PATIENCE))
            with contextlib.suppress(ConnectionError):
                clients[-1].sendall(begun[number % len(begun)].encode())
        until(lambda: _answers(hasty))
        dripping = threading.Event()
        drip = threading.Thread(target=_drip, args=(clients[2], dripping))
        drip.start()
        ends = [rest_of(client) for client in clients]  # each waits until the server closes, PATIENCE at most
        dripping.set()
        drip.join()
    finally:
        for client in clients:
            client.close()
    # Where this machine stood still between connecting and sending there was no request to answer
    assert {b"HTTP/1.1 408"} <= {end[:12] for end in ends[3 :: len(begun)]} <= {b"HTTP/1.1 408", b""}


def test_empty_lines_after_an_answer_keep_no_connection_open(hasty):
    with connection(hasty) as client:
        client.sendall(f"GET /health HTTP/1.1\r\n{HEAD}\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(b"\r\n")
        assert rest_of(client) == b""  # until the server closes, PATIENCE at most


def test_more_connections_than_the_process_has_room_for_take_no_files(monkeypatch):
    monkeypatch.setattr("trl_ext.serving.server.CONNECTIONS", 50)
    with RolloutServer(ServerOptions(port=0, token=TOKEN)) as small:
        clients = [socket.create_connection(("127.0.0.1", small.port), PATIENCE) for _ in range(80)]
        try:
            assert [rest_of(client) for client in clients[50:]] == [b""] * 30  # at once, long before read_timeout
            for client in clients[:50]:
                client.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.recv(1)
        finally:
            for client in clients:
                client.close()


@pytest.mark.parametrize(
    ("soft", "hard", "most", "raised"),
    [(1024, 4096, 1000, 2000), (1024, 1024, 512, None), (20_000, 20_000, 1000, None), (100, -1, 1000, 2000)],
)
def test_half_of_the_files_are_left_to_the_trainer(monkeypatch, soft, hard, most, raised):
    given = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: given.append(limits))
    assert room_for(1000) == most
    assert [limits for limits in given if limits[0] != soft] == ([] if raised is None else [(raised, hard)])


def _answers(server: RolloutServer) -> bool:
    with contextlib.suppress(ConnectionError):
        return exchange(server, f"GET /status HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n".encode())[9:12] == b"200"
    return False


def _drip(client: socket.socket, enough: threading.Event) -> None:
    """A byte of a header now and then, which is a sign of life and nothing else."""
    while not enough.wait(0.1):
        try:
            client.sendall(b"x")
        except OSError:
            return


def test_a_worker_that_never_says_hello_is_closed(server, monkeypatch):
    monkeypatch.setattr("trl_ext.serving.worker_socket.HELLO_SECONDS", 0.2)
    with handshaken(server) as client:
        assert close_code(heard(client)) == 1008


@pytest.mark.parametrize("with_token", [True, False])
def test_no_way_of_writing_a_path_leaves_the_page(server, with_token):
    head = HEAD if with_token else "Host: localhost\r\n"
    up = ("..", "%2e%2e", ".%2e", "%252e%252e", "..%2f..", "..%5c..", "..\\..", "....//", "%c0%ae%c0%ae", "..%00")
    names = ("gate.py", "status", "etc/passwd", "index.html")
    targets = [f"/page/{way}/{name}" for way in up for name in names]
    targets += [
        "/page//etc/passwd",
        "/page/%2fetc%2fpasswd",
        "/page/page.js%00.html",
        "/page/",
        "/page",
        "/page/.",
        "/page/page.js/",
    ]
    targets += [
        "//status",
        "/./status",
        "/%2e/status",
        "/page/../status",
        "/STATUS",
        "/status/",
        "/status%00",
        "/;/status",
    ]
    targets += [
        "http://localhost/page/../status",
        "http://evil.example//status",
        "*",
        "/page/../ws/w",
        "/episodes/..%2f..%2fstatus",
    ]
    for target in targets:
        status, body = ask(server, "GET", target, head)
        assert status in (400, 401, 404), target
        assert b"import" not in body, target
        assert b"counters" not in body, target
        assert b"root:" not in body, target


def test_requests_that_are_smuggled_or_no_http_get_nothing(server):
    both = f"POST /episodes/claim HTTP/1.1\r\n{HEAD}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    inner = "GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for request in (
        both + inner,
        "\x16\x03\x01\x02\x00\x01\x00\x01",
        "GET /status\r\n\r\n",
        f"GET /status HTTP/1.1\r\nX:\0y\r\n{HEAD}\r\n",
    ):
        answer = exchange(server, request.encode("latin-1"))
        assert b"counters" not in answer
        assert b"Traceback" not in answer
