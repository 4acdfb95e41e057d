"""The server in the trainer's process: uvicorn in a thread with an event loop of its own."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import uvicorn
from accelerate import PartialState
from fastapi import FastAPI, WebSocket

from trl_ext.errors import ConfigError, ServerError
from trl_ext.serving.app import create_app
from trl_ext.serving.chat import ChatCompletion, ChatRequest
from trl_ext.serving.desk import Desk
from trl_ext.serving.http_agents import HttpAgents
from trl_ext.serving.http_protocol import TimedHttpProtocol, room_for
from trl_ext.serving.ledger import Rules
from trl_ext.serving.messages import Claim, ClaimRequest, ResultReply, ResultRequest
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.replies import EpisodeView, Status
from trl_ext.serving.views import episode_of, status_of
from trl_ext.serving.worker_socket import WorkerSocket

SWEEP_SECONDS = 0.25
CONNECTIONS = 8192  # open at a time, waiting and idle ones too
BACKLOG = 1024
GOODBYE_SECONDS = 2.0  # at most, for workers to be told that the server stops
START_SECONDS = 30.0


class RolloutServer:
    """Answers agents with the policy that is in training, and hands episodes to workers.

    ```python
    with RolloutServer(ServerOptions(host="0.0.0.0", token=token)) as server:
        trainer = CISPOTrainer(..., rollout_func=remote_rollout(server), reward_funcs=[environment_reward])
        trainer.train()
    ```

    On several processes the main one serves; the others are asked to generate with it. Inside of `with`, SIGTERM ends
    the program as Ctrl-C does, where nothing else handles it: workers are told, and requests that wait are answered.

    Args:
        options: where it listens, who may use it.
        rules: of leases.
        model: the policy's name for OpenAI's clients.
    """

    def __init__(self, options: ServerOptions | None = None, rules: Rules | None = None, model: str = "policy"):
        self.desk = Desk(rules, options, model)
        self.options = self.desk.options
        self.port = self.options.port
        self._thread: threading.Thread | None = None
        self._uvicorn: uvicorn.Server | None = None
        self._handler: Any = None
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(self.options.host, self.options.host)
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Listen, in the main process; again, after `close`.

        Raises:
            ConfigError: the address cannot be listened to.
            ServerError: the server did not start.
        """
        if not in_main_process():
            return
        family = socket.AF_INET6 if ":" in self.options.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.options.host, self.options.port))
            listener.listen(BACKLOG)  # from now on who connects waits, and is not turned away
        except OSError as error:
            listener.close()
            raise ConfigError(f"{self.options.host}:{self.options.port} cannot be served: {error.strerror}") from None
        self.port = listener.getsockname()[1]
        self.desk.stopping = False
        self._ready.clear()
        floor = Floor(self.desk)
        config = uvicorn.Config(
            create_app(floor, self.options, self._life),
            http=TimedHttpProtocol.within(self.options.read_timeout, room_for(CONNECTIONS)),
            ws="websockets-sansio",
            ws_max_size=self.options.max_message,
            ws_per_message_deflate=False,  # a small message could become a large one
            backlog=BACKLOG,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._uvicorn.run, args=([listener],), name="rollout-server", daemon=True
        )
        self._thread.start()
        if not self._ready.wait(START_SECONDS):
            raise ServerError(f"the server at {self.url} did not start within {START_SECONDS:g} s")

    def close(self) -> None:
        """Tell workers and agents that the server stops, and close. It can be called again."""
        if self._thread is None or self._uvicorn is None:
            return
        self.desk.stop(GOODBYE_SECONDS)
        self._uvicorn.should_exit = True
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        self.start()
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._handler = signal.signal(signal.SIGTERM, _exit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None
        self.close()

    @contextlib.asynccontextmanager
    async def _life(self, app: FastAPI) -> AsyncIterator[None]:
        self.desk.loop = asyncio.get_running_loop()
        self._ready.set()
        sweeping = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            with self.desk.changed:
                self.desk.loop = None

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + SWEEP_SECONDS
            await asyncio.sleep(SWEEP_SECONDS)
            if loop.time() < due + SWEEP_SECONDS:  # or nobody was heard: what came meanwhile is read first
                self.desk.sweep()


def in_main_process() -> bool:
    """Also before there is a trainer: to ask `PartialState` then would decide for it whether it runs on the CPU."""
    if PartialState._shared_state:
        return bool(PartialState().is_main_process)
    return os.environ.get("RANK", "0") == "0"


class Floor:
    """What the routes need, out of the desk's parts."""

    def __init__(self, desk: Desk):
        self.desk, self.agents = desk, HttpAgents(desk)

    @property
    def model(self) -> str:
        return self.desk.model

    @property
    def stopping(self) -> bool:
        return self.desk.stopping

    def status(self) -> Status:
        return status_of(self.desk)

    def episode(self, id: str) -> EpisodeView | None:
        return episode_of(self.desk, id)

    def count_refused(self, status: int) -> None:
        self.desk.count_refused(status)

    def claim(self, request: ClaimRequest) -> Claim:
        return self.agents.claim(request)

    def alive(self, lease: str) -> None:
        self.agents.alive(lease)

    def result(self, lease: str, request: ResultRequest) -> ResultReply:
        return self.agents.result(lease, request)

    async def complete(self, lease: str | None, request: ChatRequest) -> ChatCompletion:
        return await self.agents.complete(lease, request)

    async def serve_worker(self, socket: WebSocket, client_id: str) -> None:
        await WorkerSocket(self.desk, socket, client_id).serve()


def _exit(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)
