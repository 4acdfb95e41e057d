"""What a request has to pass before a route sees it: origin, rate, token, and a body of bounded size and time."""

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import urlsplit

from pydantic_core import from_json
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from trl_ext.serving.options import LOOPBACK, ServerOptions
from trl_ext.serving.replies import ErrorBody, ErrorReply

OPEN = ("/", "/health")  # and what is under /page/: the page asks for the token itself
_CLIENTS = 10_000  # whose rates are remembered
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}


def error_reply(
    status: int, message: str, code: str | None = None, kind: str | None = None, **headers: str
) -> Response:
    """An error as OpenAI's clients read it. `headers` have `_` for `-`.

    They repeat a request after 409, 429 and 5xx by themselves, unless `x-should-retry` says no: a conflict stays one.
    """
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    body = ErrorReply(error=ErrorBody(message=message, type=kind, code=code))
    if status == 409:
        headers["x_should_retry"] = "false"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(body.model_dump(), status, named)


class Rate:
    """A token bucket: `rate` a second on average, `burst` at once."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic):
        self.rate, self.burst, self.clock = rate, burst, clock
        self.left, self.at = float(burst), clock()

    def wait(self) -> float:
        """Take one. The seconds until there is one to take, 0.0 if there was."""
        now = self.clock()
        self.left, self.at = min(self.burst, self.left + (now - self.at) * self.rate), now
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) / self.rate


class Gate:
    """ASGI middleware around the whole application, its sockets too: no route can be forgotten.

    `refused` is called with the status of each request that is turned away.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions, refused: Callable[[int], None]):
        self.app, self.options, self.refused = app, options, refused
        self._rates: OrderedDict[str, Rate] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        reply = self._refusal(scope)
        if reply is None and scope["type"] == "http":
            body = await self._body(scope, receive)
            if isinstance(body, Response):
                reply = body
            else:
                receive = _replayed(body, receive)
        if reply is None:
            await self.app(scope, receive, _with_headers(send) if scope["type"] == "http" else send)
            return
        self.refused(reply.status_code)
        if scope["type"] == "websocket":  # before it is accepted: the answer to the handshake
            await WebSocket(scope, receive, send).send_denial_response(reply)
            return
        await reply(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self.options.token is None and _name(host) not in LOOPBACK:  # a name that was bent to point here
            return error_reply(403, "this server is for this machine: call it localhost", "forbidden_host")
        # What is only read, browsers keep from other pages; they name an origin for the page's own modules
        acts = scope.get("method") not in ("GET", "HEAD")
        if acts and origin is not None and not self._is_own(origin, host):
            return error_reply(403, "pages of another origin may not use this server", "forbidden_origin")
        seconds = self._rate(scope).wait()
        if seconds:
            return error_reply(429, "too many requests", "rate_limit_exceeded", retry_after=str(int(seconds) + 1))
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in OPEN or path.startswith("/page/") or self._has_token(headers.get(b"authorization", "")):
            return None
        message = "a token is needed: Authorization: Bearer ..."
        return error_reply(401, message, "invalid_api_key", "authentication_error", www_authenticate="Bearer")

    def _is_own(self, origin: str, host: str) -> bool:
        if origin.rstrip("/") in [allowed.rstrip("/") for allowed in self.options.allowed_origins]:
            return True
        own = {host}
        if self.options.public_url:
            own.add(urlsplit(self.options.public_url).netloc)
        return origin.partition("://")[2] in own

    def _rate(self, scope: Scope) -> Rate:
        client = (scope.get("client") or ("",))[0]
        rate = self._rates.pop(client, None) or Rate(self.options.rate, self.options.burst)
        self._rates[client] = rate
        if len(self._rates) > _CLIENTS:
            self._rates.popitem(last=False)
        return rate

    def _has_token(self, header: str) -> bool:
        if self.options.token is None:
            return True
        scheme, _, given = header.partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self.options.token.encode())
        return scheme.lower() == "bearer" and right

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Response:
        """All of it: a route never waits for a client that sends slowly."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.options.read_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return error_reply(400, "the request ended early")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self.options.max_message:
                        limit = self.options.max_message
                        return error_reply(413, f"the body has more than {limit} bytes", connection="close")
                    parts.append(part)
                    if not message.get("more_body"):
                        return _encodable(b"".join(parts))
        except TimeoutError:
            return error_reply(408, "the body took too long", connection="close", x_should_retry="false")


def _encodable(body: bytes) -> bytes | Response:
    """The body, unless it is JSON with half a character (`\\ud800` alone), which Python reads and cannot write."""
    if rb"\ud" in body.lower():
        try:
            from_json(body)
        except ValueError as error:
            return error_reply(400, f"the body is no JSON: {error}"[:300])
    return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()  # that the client has gone
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            there: list[tuple[bytes, bytes]] = list(message.get("headers", []))
            names = {name.lower() for name, _ in there}
            message = {**message, "headers": there + [item for item in _HEADERS.items() if item[0] not in names]}
        await send(message)

    return sending


def _name(host: str) -> str:
    """A host header's name, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
