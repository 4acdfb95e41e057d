"""Work ahead of the moment when its result is asked for."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def at_once(work: Callable[[], Result]) -> "Future[Result]":
    """Run `work` here; what it returns or raises comes with `.result()`."""
    future: Future[Result] = Future()
    _run(work, future, Exception)
    return future


def in_background(work: Callable[[], Result]) -> "Future[Result]":
    """Run `work` in a daemon thread. The threads of an executor would be waited for at exit, even one that hangs."""
    future: Future[Result] = Future()
    # Also what is no Exception, such as SystemExit: it would end the thread and leave the future waited for
    threading.Thread(target=_run, args=(work, future, BaseException), daemon=True).start()
    return future


def _run(work: Callable[[], Result], future: "Future[Result]", caught: type[BaseException]) -> None:
    try:
        future.set_result(work())
    except caught as error:
        future.set_exception(error)
