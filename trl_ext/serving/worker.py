"""A worker: plays the episodes that a rollout server hands out, in environments of its own."""

import asyncio
import contextlib
import logging
import math
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import websockets
from websockets.asyncio.client import ClientConnection, connect

from trl_ext.agents.environment import Environment, Messages, Step, as_messages, begin, take_turn
from trl_ext.agents.stepping import Stepper
from trl_ext.errors import ConfigError, EnvironmentStepError, ServerError
from trl_ext.serving import messages as protocol
from trl_ext.serving.options import check_token

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two attempts to connect
_REFUSED = (401, 403, 404)  # it would be so again


class Worker:
    """Connects to a server, plays, and connects again when the connection is lost, until it is told to stop.

    An episode belongs to its connection: what was played when it was lost is begun anew by whoever gets it next.

    Args:
        server: `http://HOST:PORT`, or https, ws, wss; with the path that a reverse proxy has it under.
        env_factory: makes an environment; each is used for one episode at a time, and again unless it failed.
        environments: the names of the episodes that it plays; none: all.
        concurrency: episodes at a time.
        token: of the server.
        name: as the server's page shows it, and unique; default: of this machine and process, and a few random letters,
            because containers share both.
        step_timeout: seconds for each call of an environment; then its episode has failed.
        give_up: seconds without a server after which it gives up; None: never.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        server: str,
        env_factory: Callable[[], Environment],
        environments: Sequence[str] = (),
        concurrency: int = 1,
        token: str | None = None,
        name: str | None = None,
        step_timeout: float | None = 60.0,
        give_up: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not 1 <= concurrency <= protocol.MOST_EPISODES:
            raise ConfigError(f"concurrency = {concurrency}: must be from 1 to {protocol.MOST_EPISODES}")
        if token is not None:
            check_token(token)
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.url = f"{_socket_address(server)}/ws/{self.name}"
        self.env_factory, self.environments, self.concurrency = env_factory, tuple(environments), concurrency
        self.token, self.give_up, self.clock = token, give_up, clock
        self.played = 0
        self._stepper = Stepper(concurrency, step_timeout)
        self._idle: list[Environment] = []
        self._plays: dict[str, _Play] = {}
        self._connection: ClientConnection | None = None
        self._welcome: protocol.Welcome | None = None
        self._draining = False

    async def run(self) -> None:
        """Play until `drain`.

        Raises:
            ServerError: the server refuses this worker, or there was none for `give_up` seconds.
        """
        try:
            await self._play_until_drained()
        finally:
            self.close()

    async def _play_until_drained(self) -> None:
        pause, since = FIRST_PAUSE, self.clock()
        while not self._draining:
            try:
                headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
                async with connect(self.url, additional_headers=headers, compression=None, max_size=None) as connection:
                    await self._serve(connection)
            except websockets.InvalidStatus as error:
                if error.response.status_code in _REFUSED:
                    what = "token" if error.response.status_code == 401 else "address"
                    raise ServerError(
                        f"{self.url}: refused with {error.response.status_code}: is the {what} right?"
                    ) from None
                logger.info("%s: %s", self.url, error)
            except (OSError, TimeoutError, websockets.WebSocketException) as error:
                logger.info("%s: %s", self.url, error or type(error).__name__)
            if self._draining:
                break
            if self._welcome is not None:
                pause, since, self._welcome = FIRST_PAUSE, self.clock(), None
            if self.give_up is not None and self.clock() - since > self.give_up:
                raise ServerError(f"{self.url}: no server for {self.give_up:g} s")
            await self._sleep(pause * random.uniform(0.5, 1.0))  # a thousand workers do not come back all at once
            pause = min(2 * pause, LONGEST_PAUSE)

    def drain(self) -> None:
        """End the episodes that are played, and stop. Called again, it gives them back and stops at once."""
        again, self._draining = self._draining, True
        if again or not self._plays:
            leases = list(self._plays)
            for play in self._plays.values():
                play.task.cancel()
            self._later(self._leave(leases))
        else:
            self._later(self._say(protocol.Draining()))

    def close(self) -> None:
        """Close the environments."""
        while self._idle:
            with contextlib.suppress(Exception):
                self._idle.pop().close()

    async def _serve(self, connection: ClientConnection) -> None:
        if self._draining:  # it was told so while it connected
            return
        self._connection = connection
        hello = protocol.Hello(
            protocol=protocol.PROTOCOL, environments=list(self.environments), concurrency=self.concurrency
        )
        await self._say(hello)
        beating: asyncio.Task[None] | None = None
        try:
            async for text in connection:
                message = _parsed(text)
                if isinstance(message, protocol.Welcome):
                    self._welcome = message
                    logger.info("%s: connected as %s", self.url, self.name)
                    beating = beating or asyncio.create_task(self._beat(message.heartbeat))
                elif isinstance(message, protocol.Lease):
                    self._begin(message)
                elif isinstance(message, protocol.Act | protocol.Over) and message.lease in self._plays:
                    self._plays[message.lease].tell(message)
                elif isinstance(message, protocol.Refused):
                    logger.warning("%s: %s", self.url, message.error)
                elif isinstance(message, protocol.Stopping):
                    logger.info("%s: the server stops", self.url)
        finally:
            self._connection = None
            tasks = [beating] if beating is not None else []
            tasks += [play.task for play in self._plays.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._plays.clear()

    def _begin(self, lease: protocol.Lease) -> None:
        if lease.lease in self._plays:
            return  # said twice
        play = _Play()
        self._plays[lease.lease] = play
        play.task = asyncio.create_task(self._play(lease, play))

    async def _play(self, lease: protocol.Lease, play: "_Play") -> None:
        """An episode: whatever goes wrong in it is said to the server, and ends this episode only."""
        environment: Environment | None = None
        try:
            environment = self._idle.pop() if self._idle else await self._stepper.call(self.env_factory)
            opening = await begin(environment, lease.row, self._stepper.call)
            await self._say(protocol.Opened(lease=lease.lease, messages=_messages(opening)))
            turn = 0
            while True:
                message = await play.inbox.get()
                if isinstance(message, protocol.Over):
                    break
                if message.turn <= turn:
                    continue  # said twice
                turn = message.turn
                step = await take_turn(environment, message.text, self._stepper.call)
                await self._say(_stepped(lease.lease, turn, step))
                if step.terminated or step.truncated:
                    break
            self._idle.append(environment)
            environment = None
            self.played += 1
        except (OSError, websockets.WebSocketException) as error:
            if self._connection is not None:  # the environment's own
                await self._fail(lease, error)
        except Exception as error:
            await self._fail(lease, error)
        finally:
            if environment is not None:
                with contextlib.suppress(Exception):
                    environment.close()
            self._plays.pop(lease.lease, None)
            if self._draining and not self._plays:
                self._later(self._leave())

    async def _fail(self, lease: protocol.Lease, error: Exception) -> None:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        text = text.encode("utf-8", "backslashreplace").decode()  # names of files may have half characters
        logger.warning("%s: %s", lease.lease, text)
        with contextlib.suppress(OSError, websockets.WebSocketException):
            await self._say(protocol.Failed(lease=lease.lease, error=text))

    async def _beat(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._say(protocol.Heartbeat())

    async def _say(self, message: Any) -> None:
        """
        Raises:
            EnvironmentStepError: the message is longer than the server takes. It would close the connection, and what
                else is played would be lost too.
        """
        if self._connection is not None:
            text = message.model_dump_json()
            size, most = len(text.encode()), self._welcome.max_message if self._welcome is not None else math.inf
            if size > most:
                raise EnvironmentStepError(f"a message of {size} bytes: the server takes {most} (max_message)")
            await self._connection.send(text)

    async def _leave(self, give_back: Sequence[str] = ()) -> None:
        connection = self._connection
        if connection is not None:
            for lease in give_back:
                await self._say(protocol.Returned(lease=lease))
            await connection.close()

    async def _sleep(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while not self._draining and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(min(0.1, seconds))

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


class _Play:
    """An episode that is played: its task, and what the server says to it."""

    task: "asyncio.Task[None]"

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[protocol.Act | protocol.Over] = asyncio.Queue()

    def tell(self, message: protocol.Act | protocol.Over) -> None:
        self.inbox.put_nowait(message)


def run_worker(worker: Worker) -> None:
    """Run a worker as a program: Ctrl-C and SIGTERM end it after its episodes, a second one at once."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, worker.drain)
        await worker.run()

    asyncio.run(run())


def _stepped(lease: str, turn: int, step: Step) -> protocol.Stepped:
    """A step as a message. Of `info` numbers go along, and what trajectories read of it by name."""
    info: dict[str, bool | float | str] = {
        name: value
        for name, value in step.info.items()
        if isinstance(value, bool) or (isinstance(value, int | float) and math.isfinite(value))
    }
    if "success" in step.info:
        info["success"] = bool(step.info["success"])
    if "invalid" in step.info:
        info["invalid"] = str(step.info["invalid"])[:10_000]
    return protocol.Stepped(
        lease=lease,
        turn=turn,
        messages=_messages(as_messages(step.observation)),
        reward=step.reward,
        terminated=step.terminated,
        truncated=step.truncated,
        info=info,
    )


def _messages(messages: Messages) -> list[protocol.EnvironmentMessage]:
    return [protocol.EnvironmentMessage.model_validate(message) for message in messages]


def _parsed(text: str | bytes) -> Any:
    """The message, or None for what is none."""
    try:
        return protocol.from_server.validate_json(text)
    except ValueError as error:
        logger.warning("a message that makes no sense: %s", " ".join(str(error).split())[:200])
        return None


def _socket_address(server: str) -> str:
    """
    Raises:
        ConfigError: it is no address.
    """
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    try:
        parts = urlsplit(server)
        known = parts.scheme in schemes and parts.hostname and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:  # a port that is none
        known = False
    if not known:
        raise ConfigError(f"--server {server!r}: must be an address such as http://HOST:8000")
    return f"{schemes[parts.scheme]}://{parts.netloc}{parts.path.rstrip('/')}"
