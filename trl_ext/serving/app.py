"""The HTTP routes: what watches the run, and what plays it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Request, WebSocket
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from trl_ext.serving.chat import ChatCompletion, ChatRequest, Model, ModelList
from trl_ext.serving.gate import Gate, error_reply
from trl_ext.serving.messages import Claim, ClaimRequest, ResultReply, ResultRequest
from trl_ext.serving.metrics import prometheus_text
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.refusal import Refusal
from trl_ext.serving.replies import EpisodeView, ErrorReply, Health, Status, json_reply

PAGE = Path(__file__).with_name("page")
_ERRORS: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorReply}}
Id = Annotated[str, InPath(max_length=100, pattern=r"^[A-Za-z0-9_.-]+$")]


class Desk(Protocol):
    """What the routes need of the place where agents and the policy meet (`server.py`)."""

    @property
    def model(self) -> str: ...
    @property
    def stopping(self) -> bool: ...
    def status(self) -> Status: ...
    def episode(self, id: str) -> EpisodeView | None: ...
    def count_refused(self, status: int) -> None: ...
    def claim(self, request: ClaimRequest) -> Claim: ...
    def alive(self, lease: str) -> None: ...
    def result(self, lease: str, request: ResultRequest) -> ResultReply: ...
    async def complete(self, lease: str | None, request: ChatRequest) -> ChatCompletion: ...
    async def serve_worker(self, socket: WebSocket, client_id: str) -> None: ...


def create_app(
    desk: Desk,
    options: ServerOptions,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """The application around a desk. Tests give it a desk without a trainer."""
    app = FastAPI(
        title="trl-ext rollout server",
        docs_url=None,  # their pages fetch scripts from outside
        redoc_url=None,
        lifespan=lifespan,
        responses=_ERRORS,
        redirect_slashes=False,  # to an address that a proxy may have another name for
    )
    app.add_middleware(Gate, options=options, refused=desk.count_refused)
    _add_errors(app, desk)
    _add_views(app, desk)
    _add_play(app, desk, options)
    return app


def _add_views(app: FastAPI, desk: Desk) -> None:
    files = {path.name: path for path in PAGE.glob("*") if path.is_file()}

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return _file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    def page_file(name: str) -> Response:
        return _file(name)

    def _file(name: str) -> Response:
        if name not in files:  # a name out of the folder's list, never a path
            return error_reply(404, "no such file", "not_found")
        return FileResponse(files[name])

    @app.get("/health")
    async def health() -> Health:
        return Health(status="stopping" if desk.stopping else "ok")

    @app.get("/status", response_model=Status)
    async def status() -> Response:
        return json_reply(desk.status())

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(prometheus_text(desk.status()), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/episodes/{id}", response_model=EpisodeView)
    async def episode(id: Id) -> Response:
        found = desk.episode(id)
        if found is None:
            raise Refusal(404, f"no episode {id!r}, or it ended long ago", "episode_not_found")
        return json_reply(found)


def _add_play(app: FastAPI, desk: Desk, options: ServerOptions) -> None:
    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[Model(id=desk.model)])

    @app.get("/episodes/{lease}/v1/models")
    async def models_of_episode(lease: Id) -> ModelList:
        """A client's way to say that its agent is busy with the episode."""
        desk.alive(lease)
        return await models()

    @app.post("/v1/chat/completions")
    async def complete(request: ChatRequest) -> ChatCompletion:
        return await desk.complete(None, request)

    @app.post("/episodes/claim")
    async def claim(request: ClaimRequest, http: Request) -> Claim:
        claimed = desk.claim(request)
        base = (options.public_url or str(http.base_url)).rstrip("/")
        claimed.base_url = f"{base}/episodes/{claimed.lease}/v1"
        return claimed

    @app.post("/episodes/{lease}/v1/chat/completions")
    async def complete_episode(lease: Id, request: ChatRequest) -> ChatCompletion:
        return await desk.complete(lease, request)

    @app.post("/episodes/{lease}/result")
    async def result(lease: Id, request: ResultRequest) -> ResultReply:
        return desk.result(lease, request)

    @app.websocket("/ws/{client_id}")
    async def worker(socket: WebSocket, client_id: Id) -> None:
        await desk.serve_worker(socket, client_id)


def _add_errors(app: FastAPI, desk: Desk) -> None:
    @app.exception_handler(Refusal)
    async def refusal(request: Request, error: Refusal) -> Response:
        if error.status in (429, 503) and error.code != "no_episode":
            desk.count_refused(error.status)
        return error.reply()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        desk.count_refused(400)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return error_reply(400, f"{place}: {first['msg']}"[:300] if place else str(first["msg"])[:300], "invalid")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        message = str(error.detail) or HTTPStatus(error.status_code).phrase
        return error_reply(
            error.status_code, message, **{k.replace("-", "_"): v for k, v in (error.headers or {}).items()}
        )
