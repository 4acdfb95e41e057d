"""A server on loopback, and a reverse proxy to put before it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


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


def reverse_proxy(prefix: str, upstream: str) -> Starlette:
    """Passes what is under `prefix` on to another server, as nginx does, which takes the prefix off."""
    client = httpx.AsyncClient(base_url=upstream)

    async def forward(request: Request) -> Response:
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        answer = await client.get(request.path_params["path"], headers=headers)
        kept = {
            name: value for name, value in answer.headers.items() if name not in ("content-length", "content-encoding")
        }
        return Response(answer.content, answer.status_code, kept)

    return Starlette(routes=[Route(prefix + "{path:path}", forward)])
