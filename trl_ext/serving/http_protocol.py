"""uvicorn's HTTP with limits for the headers, which it lacks: who sends them slowly, or without end, is cut off."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 1 << 18  # what asyncio reads at once: no head of usual size, with what comes after it, is more


class TimedHttpProtocol(HttpToolsProtocol):
    """The clock runs from the connection, or what comes after an answer, to the end of a request's headers."""

    seconds = 20.0
    _head = 0
    _timer: asyncio.TimerHandle | None = None

    @classmethod
    def within(cls, seconds: float) -> type["TimedHttpProtocol"]:
        return type(cls.__name__, (cls,), {"seconds": seconds})

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_protocol() is not self:  # a socket's from here on
            return
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._begin()  # empty lines before a request begin none, and end the wait for one
        if self._timer is not None:
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin()

    def on_headers_complete(self) -> None:
        self._end()
        super().on_headers_complete()

    def _begin(self) -> None:
        self._end()
        self._head = 0
        self._timer = self.loop.call_later(self.seconds, self.transport.abort)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
