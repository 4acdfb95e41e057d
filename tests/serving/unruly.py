"""A proxy between workers and a server that says things twice, late, in disorder, and things that make no sense."""

import asyncio
import contextlib
import json
import random
import threading
from collections import Counter

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

GARBAGE = (
    "",
    "null",
    "{",
    "[" * 5000,
    '{"type": "stepped"}',
    '{"type": "hello", "protocol": 9}',
    '{"type": "stepped", "lease": "1-zzz.1", "turn": 1, "reward": NaN, "terminated": true, "truncated": false}',
    '{"type": "opened", "lease": "../../etc", "messages": []}',
    '{"type": "failed", "lease": "1-zzz.1", "error": "\\ud800"}',
    "\x00\x7f",
    b"\xff\xfe\x00",
)


class UnrulyProxy:
    """Runs in a thread, from `url` to the port that `target` names at the moment. `did` counts what it did."""

    def __init__(self, target: int, seed: int = 0, rate: float = 0.1):
        self.target, self.rate, self.rng, self.did = target, rate, random.Random(seed), Counter()
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        self._ready.wait(60)
        return self

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}"

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self):
        self._stop = asyncio.Event()
        async with serve(self._relay, "127.0.0.1", 0, close_timeout=0.1) as server:
            self._port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()

    async def _relay(self, worker):
        try:
            async with connect(f"ws://127.0.0.1:{self.target}{worker.request.path}", close_timeout=0.1) as server:
                await server.send(await worker.recv())  # hello
                ways = [
                    asyncio.create_task(self._forward(worker, server)),
                    asyncio.create_task(self._forward(server, worker)),
                ]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
        except (OSError, websockets.WebSocketException):
            pass  # the worker sees its connection closed

    async def _forward(self, source, sink):
        tasks = set()
        async for message in source:
            task = asyncio.create_task(self._send(sink, message, self.rng.uniform(0, 0.03)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if self.rng.random() < self.rate:
                self.did["twice"] += 1
                tasks.add(asyncio.create_task(self._send(sink, message, self.rng.uniform(0, 0.2))))
            if self.rng.random() < self.rate:
                self.did["garbage"] += 1
                tasks.add(asyncio.create_task(self._send(sink, self.rng.choice(GARBAGE), 0.0)))
            self.did[json.loads(message)["type"]] += 1

    async def _send(self, sink, message, seconds):
        await asyncio.sleep(seconds)
        with contextlib.suppress(websockets.WebSocketException):
            await sink.send(message)
