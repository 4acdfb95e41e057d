"""A worker's connection on the server's side."""

import asyncio
from typing import Any

from fastapi import WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketState

from trl_ext.serving.desk import Desk
from trl_ext.serving.gate import Rate
from trl_ext.serving.messages import PROTOCOL, Hello, Refused, from_worker
from trl_ext.serving.refusal import Refusal

HELLO_SECONDS = 10.0
GARBAGE = 50  # messages that make no sense, at once; one more for each second
WRITE_SECONDS = 30.0


class WorkerSocket:
    """Reads a worker's messages to the desk and writes the desk's, until one of both goes.

    A worker that sends faster than the server's rate is read more slowly.
    """

    def __init__(self, desk: Desk, socket: WebSocket, id: str):
        self.desk, self.socket, self.id = desk, socket, id
        self._out: asyncio.Queue[Any] = asyncio.Queue()
        self._rate = Rate(desk.options.rate, desk.options.burst)
        self._garbage = Rate(1.0, GARBAGE)

    def put(self, message: Any) -> None:
        """Send a message, in the event loop; None closes the socket."""
        self._out.put_nowait(message)

    async def serve(self) -> None:
        await self.socket.accept()
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await self._hello()
            if hello is None:
                return
            self.desk.attach(self, hello)
        except (TimeoutError, WebSocketDisconnect):
            await self._close(1008)
            return
        except Refusal as refusal:
            await self._write(Refused(error=refusal.message))
            await self._close(1013)
            return
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write_all())
        try:
            await asyncio.wait([reader, writer], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.desk.detach(self)
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            await self._close(1000)

    async def _hello(self) -> Hello | None:
        message = self._parsed(await self.socket.receive())
        error = "the first message must be hello"
        if isinstance(message, Hello):
            if message.protocol == PROTOCOL:
                return message
            error = (
                f"protocol {message.protocol}: this server speaks {PROTOCOL}; install the same trl-ext on both sides"
            )
        await self._write(Refused(error=error))
        await self._close(1008)
        return None

    async def _read(self) -> None:
        while True:
            frame = await self.socket.receive()
            seconds = self._rate.wait()
            while seconds:
                await asyncio.sleep(seconds)
                seconds = self._rate.wait()
            message = self._parsed(frame)
            error = message if isinstance(message, str) else self.desk.hear(self, message)
            if error is not None:
                self.put(Refused(error=error))
                if self._garbage.wait():
                    self.put(None)
                    return

    def _parsed(self, frame: Any) -> Any:
        """The message, or what is wrong with it."""
        if frame["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(frame.get("code", 1000))
        try:
            if frame.get("text") is None:
                raise ValueError("messages are text")
            return from_worker.validate_json(frame["text"])
        except (ValueError, RecursionError) as error:  # ValidationError is a ValueError
            self.desk.count_refused(400)
            return _one_line(error)

    async def _write_all(self) -> None:
        while (message := await self._out.get()) is not None:
            await self._write(message)

    async def _write(self, message: Any) -> None:
        async with asyncio.timeout(WRITE_SECONDS):  # one that does not read has gone
            await self.socket.send_text(message.model_dump_json())

    async def _close(self, code: int) -> None:
        if self.socket.client_state is not WebSocketState.DISCONNECTED:
            try:
                async with asyncio.timeout(1.0):
                    await self.socket.close(code)
            except (RuntimeError, TimeoutError, WebSocketDisconnect):
                pass  # it is closed


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]
    return f"{type(error).__name__}: {error}"[:300]
