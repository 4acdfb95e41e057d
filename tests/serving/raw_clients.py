"""Clients that write their bytes themselves, as no library would, and what they do to the memory of server and test."""

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from trl_ext.serving.messages import PROTOCOL
from trl_ext.serving.server import RolloutServer

TOKEN = "a-token-of-the-tests"
MESSAGE = 100_000  # bytes that the server takes
HUGE = 100 << 20
CHUNK = b"a" * (64 << 10)
ROOM = 24 << 20  # bytes that the whole process may grow by while it is sent HUGE
TEXT, BINARY, CLOSE = 1, 2, 8  # opcodes
PATIENCE = 60.0  # seconds until a test gives up on a server that should have answered
HEAD = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"


@contextmanager
def connection(server: RolloutServer) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", server.port), PATIENCE)) as client:
        yield client


def exchange(server: RolloutServer, request: bytes) -> bytes:
    """What comes back until the server closes."""
    with connection(server) as client:
        client.sendall(request)
        return rest_of(client)


def rest_of(client: socket.socket) -> bytes:
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def ask(server: RolloutServer, method: str, target: str, head: str = HEAD, body: bytes = b"") -> tuple[int, bytes]:
    """The status and the body of the answer to a request whose target is sent as it is."""
    lines = f"{method} {target} HTTP/1.1\r\n{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    head_of, _, content = exchange(server, lines.encode("latin-1") + body).partition(b"\r\n\r\n")
    return int(head_of.split()[1]), content


def send_much(client: socket.socket, begin: bytes, chunk: bytes = CHUNK) -> int:
    """Send up to HUGE bytes; how many went before the server would have no more."""
    sent = 0
    try:
        client.sendall(begin)
        while sent < HUGE:
            client.sendall(chunk)
            sent += len(chunk)
    except ConnectionError:
        pass
    return sent


@contextmanager
def growing_less_than(room: int) -> Iterator[None]:
    """The most memory that this process, client and server, has at any moment inside."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        pytest.skip("the most memory is known on Linux alone")

    def of(name: str) -> int:
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith(name))

    clear.write_text("5")  # the peak is what there is now
    before = of("VmRSS")
    yield
    assert of("VmHWM") - before < room


def frame(opcode: int, length: int, final: bool = True) -> bytes:
    """The head of a client's frame, with a mask of zeros."""
    return bytes([opcode | (0x80 if final else 0), 0xFF]) + struct.pack(">QI", length, 0)


@contextmanager
def handshaken(server: RolloutServer, name: str = "w") -> Iterator[socket.socket]:
    """A socket that the server has accepted."""
    upgrade = (
        f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n"
    )
    with connection(server) as client:
        client.sendall(f"GET /ws/{name} HTTP/1.1\r\n{HEAD}{upgrade}\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = client.recv(1)
            assert part, "it was closed"
            head += part
        assert head.startswith(b"HTTP/1.1 101")
        yield client


@contextmanager
def worker(server: RolloutServer) -> Iterator[tuple[socket.socket, Iterator[tuple[int, bytes]]]]:
    """One who has said hello: its socket, and what is heard there."""
    with handshaken(server) as client:
        say(client, {"type": "hello", "protocol": PROTOCOL})
        answers = heard(client)
        assert [json.loads(next(answers)[1])["type"] for _ in range(2)] == ["welcome", "wait"]
        yield client, answers


def say(client: socket.socket, message: Any) -> None:
    data = message.encode() if isinstance(message, str) else json.dumps(message).encode()
    client.sendall(frame(TEXT, len(data)) + data)


def heard(client: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The frames of the server, up to the one that closes: (opcode, data)."""
    stream = client.makefile("rb")
    opcode = 0
    while opcode != CLOSE:
        opcode, length = stream.read(2)
        if length == 126:
            (length,) = struct.unpack(">H", stream.read(2))
        opcode &= 0x0F
        yield opcode, stream.read(length)


def close_code(answers: Iterator[tuple[int, bytes]]) -> int:
    opcode, data = list(answers)[-1]
    assert opcode == CLOSE
    return int(struct.unpack(">H", data[:2])[0])
