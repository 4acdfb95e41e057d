"""Many environments at a time, each call with a time limit, whether it is a coroutine or blocks a thread."""

import asyncio
import inspect
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from trl_ext.errors import ConfigError


class Stepper:
    """Runs the calls of environments: coroutine functions in an event loop of its own, others in daemon threads.

    The loop lives as long as this object, so that a client that an environment opens in one turn is good in the next. A
    thread that hangs is left behind: it cannot be stopped, but nothing waits for it. A coroutine function that blocks
    without awaiting stops all of them, time limits too.

    Args:
        max_concurrency: how many calls run at a time.
        timeout: seconds that a call may take, from when it begins; None sets no limit.

    Raises:
        ConfigError: the time limit is not above 0.
    """

    def __init__(self, max_concurrency: int, timeout: float | None):
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"step_timeout = {timeout}: must be greater than 0 (seconds), or None")
        self.max_concurrency, self.timeout = max_concurrency, timeout
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, works: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """What each returned, or the exception that it ended with, in order."""
        if not works:
            return []
        if self._loop is None:
            self._loop = loop = asyncio.new_event_loop()
            threading.Thread(target=_run_until_stopped, args=(loop,), daemon=True).start()
            weakref.finalize(self, loop.call_soon_threadsafe, loop.stop).atexit = False
        return asyncio.run_coroutine_threadsafe(self._together(works), self._loop).result()

    async def _together(self, works: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        places = asyncio.Semaphore(self.max_concurrency)

        async def one(work: Coroutine[Any, Any, Any]) -> Any:
            async with places:
                return await work

        return await asyncio.gather(*map(one, works), return_exceptions=True)

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `function` within the time limit; a coroutine that it returns is awaited.

        Raises:
            TimeoutError: says which call took too long.
        """
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                if inspect.iscoroutinefunction(function):
                    return await function(*args, **kwargs)
                result = await asyncio.wrap_future(_in_daemon_thread(lambda: function(*args, **kwargs)))
                return await result if inspect.isawaitable(result) else result
        except (KeyboardInterrupt, SystemExit) as error:  # in the loop's thread they would end the loop
            raise RuntimeError(f"the environment raised {type(error).__name__}") from None
        except TimeoutError:
            if not limit.expired():  # the environment's own
                raise
            name = getattr(function, "__name__", repr(function))
            raise TimeoutError(f"{name} took longer than step_timeout = {self.timeout:g} s") from None


def _run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _in_daemon_thread(work: Callable[[], Any]) -> "Future[Any]":
    """The threads of an executor would be waited for at exit, even one that hangs."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()  # who stops waiting cannot cancel it: the thread may still finish

    def run() -> None:
        try:
            future.set_result(work())
        except StopIteration:  # asyncio's futures refuse it: who waits would never hear of it
            future.set_exception(RuntimeError("the environment raised StopIteration"))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def settle(episode: Any, result: Any, take: Callable[[Any], None]) -> None:
    """Let an episode take what a call of its environment returned, or fail by what it raised.

    It fails, too, where a template or a tokenizer cannot take what the environment said.
    """
    try:
        if isinstance(result, BaseException):
            episode.fail(result)
        else:
            take(result)
    except Exception as error:
        episode.fail(error)


def put_back(environment: Any, failure: str | None, idle: list[Any]) -> None:
    """Keep an environment for another episode. One that failed may still hang: it is closed in a thread of its own."""
    if failure is None:
        idle.append(environment)
    else:
        _in_daemon_thread(environment.close)


class Clock:
    """Keeps of each `with clock:` when it began (Unix time), and how many seconds it took."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.calls)

    def __enter__(self) -> None:
        self._began, self._started = time.time(), time.perf_counter()

    def __exit__(self, *error: Any) -> None:
        self.calls.append((self._began, time.perf_counter() - self._started))
