"""What the tests of the live page share: a server on loopback, a reverse proxy before it, and a page that is watched."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn
from playwright.sync_api import Page
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# In the page itself: what its policy stopped would be seen in no other way by some engines.
_REPORT_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


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
        kept = {name: value for name, value in answer.headers.items() if name not in ("content-length", "content-encoding")}
        return Response(answer.content, answer.status_code, kept)

    return Starlette(routes=[Route(prefix + "{path:path}", forward)])


class Watched:
    """Everything that a page does besides being shown."""

    def __init__(self, page: Page):
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", self._dismiss)
        page.on("popup", lambda popup: self.complaints.append(f"popup: {popup.url}"))
        page.on("download", lambda download: self.complaints.append(f"download: {download.url}"))
        page.on("request", lambda request: self.requests.append(request.url))
        page.add_init_script(_REPORT_VIOLATIONS)

    def assert_quiet(self, under: str) -> None:
        """Nothing was complained of, ran that should not, or was asked for outside of an address."""
        assert self.complaints == []
        assert self.page.evaluate("violations") == []
        assert self.requests
        assert all(url.startswith(under) for url in self.requests), self.requests
        assert urlsplit(self.page.url).netloc == urlsplit(under).netloc

    def _dismiss(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()
