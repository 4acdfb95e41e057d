"""Whether the answer of a completion equals the reference as mathematics, judged in worker processes."""

import contextlib
import faulthandler
import functools
import importlib.util
import logging
import math
import multiprocessing
import multiprocessing.util
import os
import re
import resource
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from trl_ext.errors import MissingExtraError
from trl_ext.rewards.registry import register_reward

Pair = tuple[str, str]  # (reference, completion)


@register_reward("math", leans_on="math-verify", extra="rewards", cost="1 ms")
class MathVerify:
    """1 where the completion's answer equals the reference as mathematics, 0 where not (math-verify).

    The parse is that of TRL's `accuracy_reward`: LaTeX in `\\boxed{}` first, or after "answer", in the completion;
    LaTeX or a plain expression in the reference. A reference that does not parse is not scored.

    Runs in worker processes, up to 8, shared by all `math` rewards of the process; POSIX only. A reference is parsed
    once for a chunk of a batch, and equal answers to one reference are compared once. `timeout` is the limit in seconds
    for a completion, past which it is 0, and for a reference, past which it is not scored (`accuracy_reward`: 10 s a
    parse, 5 s a comparison). A worker may take 4 GiB; one that does not react to the limit is killed.
    """

    def __init__(self, timeout: float = 5.0):
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout = {timeout}: must be finite and positive")
        self.timeout = timeout

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtraError("the reward 'math' needs: pip install 'trl-ext[rewards]'")
        rows: list[list[Pair]] = []
        for completion, references in zip(completions, target, strict=True):
            several = references if isinstance(references, list | tuple) else [references]
            # Where nothing in a text can match, an empty one gives the same verdict
            text = completion if _MAY_ANSWER.search(completion) else ""
            rows.append([(str(reference), text) for reference in several if reference is not None])
        verdicts = _POOL.judge(sorted({pair for row in rows for pair in row}), self.timeout)
        known = [[score for pair in row if (score := verdicts[pair]) is not None] for row in rows]
        return [max(scores, default=None) for scores in known]


# Each of math-verify's patterns for a completion contains one of these, as long as try_extract_without_anchor is off
_MAY_ANSWER = re.compile(r"\\boxed\{|(?i:answer)")
_CHUNK = 16
_MEMORY = 4 << 30


class _MathPool:
    """Worker processes that start with the first batch and are replaced when one of them dies."""

    def __init__(self, method: str = "forkserver") -> None:
        self._method = method
        self._lock = threading.Lock()
        self._executor: ProcessPoolExecutor | None = None
        self.workers = min(os.cpu_count() or 1, 8)

    def judge(self, pairs: list[Pair], timeout: float) -> dict[Pair, float | None]:
        """The verdict on every pair. Sorted pairs have those of one reference side by side, which is fastest."""
        size = max(1, min(_CHUNK, -(-len(pairs) // (2 * self.workers))))
        verdicts: dict[Pair, float | None] = {}
        with self._lock:  # one batch at a time: a worker's death is then the work of a pair of this batch
            self._attempt([pairs[i : i + size] for i in range(0, len(pairs), size)], timeout, verdicts)
            # A pair that killed its worker took the others with it: find it among those that were then running
            left = [pair for pair in pairs if pair not in verdicts]
            for start in range(0, len(left), self.workers):
                window = left[start : start + self.workers]
                self._attempt([[pair] for pair in window], timeout, verdicts)
                for pair in window:
                    if pair not in verdicts:
                        self._attempt([[pair]], timeout, verdicts)
                        verdicts.setdefault(pair, 0.0)
        return verdicts

    def _attempt(self, chunks: list[list[Pair]], timeout: float, verdicts: dict[Pair, float | None]) -> None:
        """Add the verdicts on all chunks that finish; when a worker dies or hangs, stop the pool and leave the rest."""
        futures: dict[Future[list[float | None]], list[Pair]] = {}
        healthy = False
        try:
            with contextlib.suppress(BrokenProcessPool):
                for chunk in chunks:
                    futures[self._submit(chunk, timeout)] = chunk
            pending, patience = set(futures), 60 + 2 * timeout * _CHUNK
            while pending:
                done, pending = wait(pending, patience, FIRST_COMPLETED)
                if not done:
                    break
                for future in done:
                    with contextlib.suppress(BrokenProcessPool):
                        verdicts.update(zip(futures[future], future.result(), strict=True))
            healthy = all(chunk[0] in verdicts for chunk in chunks)
        finally:  # also on Ctrl-C: the queue must not outlive the batch
            if not healthy:
                self._stop()

    def _submit(self, chunk: list[Pair], timeout: float) -> "Future[list[float | None]]":
        with _plain_parent():
            if self._executor is None:
                context: Any = multiprocessing.get_context(self._method)
                if self._method == "forkserver":  # what it imports is shared by all workers, and by their successors
                    context.set_forkserver_preload([__name__, "math_verify"])
                # A child of multiprocessing waits for its own children before the executor would end them
                multiprocessing.util.Finalize(None, self._stop, exitpriority=100)
                self._executor = ProcessPoolExecutor(self.workers, context, _prepare_worker)
            return self._executor.submit(_judge_chunk, chunk, timeout)

    def _stop(self) -> None:
        if self._executor is not None:
            processes = list((self._executor._processes or {}).values())
            self._executor.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
            self._executor = None


_POOL = _MathPool()
# A fork has neither its parent's workers nor a use for its fork server
os.register_at_fork(after_in_child=lambda: _POOL.__init__("spawn"))  # type: ignore[misc]


@contextlib.contextmanager
def _plain_parent() -> Iterator[None]:
    """Start workers without the user's script, which they would run again, and from daemonic processes as well.

    A daemonic process, as in TRL's asynchronous rollouts, may have no children lest it leaves orphans: ours end by
    themselves.
    """
    main, config = sys.modules["__main__"], multiprocessing.current_process()._config  # type: ignore[attr-defined]
    daemon = config.get("daemon")
    sys.modules["__main__"], config["daemon"] = types.ModuleType("__main__"), False
    try:
        yield
    finally:
        sys.modules["__main__"], config["daemon"] = main, daemon


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGALRM, _raise_time_limit)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its own time limits are off
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _TimeLimit(BaseException):
    """Not an Exception: math-verify swallows those."""


def _raise_time_limit(*_: Any) -> None:
    raise _TimeLimit


def _judge_chunk(pairs: list[Pair], timeout: float) -> list[float | None]:
    """The verdicts on (reference, completion) pairs; in a worker's main thread."""
    from latex2sympy2_extended import NormalizationConfig  # type: ignore[import-untyped]
    from math_verify import LatexExtractionConfig, parse, verify

    config = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
    )
    watchdog = _Watchdog(timeout)
    # All references first: math-verify builds its patterns anew whenever the extraction config changes
    golds = {
        gold: _limited(lambda gold=gold: parse(gold, parsing_timeout=None), watchdog, [])  # type: ignore[misc]
        for gold, _ in pairs
    }
    compared: dict[Any, float] = {}

    def judge(gold: str, completion: str) -> float:
        answer = parse(completion, extraction_config=[config], extraction_mode="first_match", parsing_timeout=None)
        if not answer:
            return 0.0
        key = (gold, *map(_structure, answer))
        if key not in compared:
            compared[key] = float(verify(golds[gold], answer, timeout_seconds=None))
        return compared[key]

    verdicts: list[float | None] = []
    for gold, completion in pairs:
        verdict = _limited(functools.partial(judge, gold, completion), watchdog, 0.0) if golds[gold] else None
        verdicts.append(verdict)
    watchdog.cancel()
    return verdicts


def _structure(part: Any) -> str:
    from sympy import srepr  # type: ignore[import-untyped]

    return part if isinstance(part, str) else f"{type(part)}{srepr(part)}"


def _limited(function: Callable[[], Any], watchdog: "_Watchdog", otherwise: Any) -> Any:
    """What the function returns, or `otherwise` where it takes too long, too much memory or too deep a recursion."""
    try:
        try:
            watchdog.rearm()
            # Fires again in case the library swallows the first
            signal.setitimer(signal.ITIMER_REAL, watchdog.timeout, 0.2)
            return function()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except (_TimeLimit, MemoryError, RecursionError):
        signal.setitimer(signal.ITIMER_REAL, 0)
        return otherwise


class _Watchdog:
    """Ends the process when one step takes far too long: inside one operation on huge integers no signal is handled."""

    def __init__(self, timeout: float):
        self.timeout, self._armed, self._sink = timeout, -math.inf, open(os.devnull, "w")  # noqa: SIM115

    def rearm(self) -> None:
        now = time.monotonic()
        if now - self._armed > 0.25 * self.timeout:  # arming starts a thread: not for each of many fast steps
            faulthandler.dump_traceback_later(1.25 * self.timeout + 1.0, exit=True, file=self._sink)
            self._armed = now

    def cancel(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._sink.close()
