"""uvicorn's HTTP with limits that it lacks: who sends headers slowly, or without end, is cut off, and one too many."""

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 1 << 18  # what asyncio reads at once: no head of usual size, with what comes after it, is more


def room_for(connections: int) -> int:
    """How many of them the process may hold at most: half of its files. Their limit is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else min(connections, soft // 2)


class TimedHttpProtocol(HttpToolsProtocol):
    """The clock runs from the connection, or what comes after an answer, to the end of a request's headers.

    A connection beyond `most` is closed at once: each is an open file, and the trainer's process has files to write.
    """

    seconds, most = 20.0, 8192
    _head = 0
    _timer: asyncio.TimerHandle | None = None

    @classmethod
    def within(cls, seconds: float, most: int) -> type["TimedHttpProtocol"]:
        return type(cls.__name__, (cls,), {"seconds": seconds, "most": most})

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin()
        if len(self.connections) > self.most:
            transport.abort()

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
