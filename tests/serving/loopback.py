"""A server on loopback, and a reverse proxy to put before it."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus


@contextmanager
def serving(app: Any, port: int = 0) -> Iterator[str]:
    """An application on loopback; its address, with a slash at the end."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def kept_port() -> Iterator[int]:
    """A port for servers that come one after the other: bound here, it is given to nobody else in between.

    They must set SO_REUSEADDR, as uvicorn and `RolloutServer` do.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def reverse_proxy(prefix: str, upstream: str) -> Starlette:
    """Passes what is under `prefix` on to another server, as nginx does, which takes the prefix off; sockets too."""
    client = httpx.AsyncClient(base_url=upstream, timeout=60)

    async def forward(request: Request) -> Response:
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        path, body = request.path_params["path"], await request.body()
        answer = await client.request(request.method, path, headers=headers, content=body)
        kept = {
            name: value for name, value in answer.headers.items() if name not in ("content-length", "content-encoding")
        }
        return Response(answer.content, answer.status_code, kept)

    async def relay(outside: WebSocket) -> None:
        address = upstream.replace("http", "ws", 1) + outside.path_params["path"]
        headers = {"Authorization": outside.headers.get("Authorization", "")}
        try:
            async with connect(address, additional_headers=headers) as inside:
                await outside.accept()
                ways = [asyncio.create_task(way) for way in (_inward(outside, inside), _outward(inside, outside))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except InvalidStatus as error:
            await outside.send_denial_response(Response(status_code=error.response.status_code))

    path = prefix + "{path:path}"
    return Starlette(routes=[Route(path, forward, methods=["GET", "POST"]), WebSocketRoute(path, relay)])


async def _inward(outside: WebSocket, inside: ClientConnection) -> None:
    async for text in outside.iter_text():
        await inside.send(text)


async def _outward(inside: ClientConnection, outside: WebSocket) -> None:
    async for text in inside:
        await outside.send_text(str(text))
    await outside.close()
