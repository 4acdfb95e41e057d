"""A worker of the reward `math`: a program that judges answers with math-verify until its input ends.

Each line of the input is JSON, `[seconds, [[reference, completion], ...]]`; the output is a line for each pair, a
number or null. The package is not imported: the program starts by its path, so that it needs math-verify alone.
"""

import functools
import json
import logging
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_MEMORY = 4 << 30
_CACHED = 500  # characters of a text whose parse is kept
_CACHE = 1000  # texts


def main() -> None:
    """Judge until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody reads any more: end in silence
    signal.signal(signal.SIGPROF, _raise_time_limit)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = _MEMORY if hard == resource.RLIM_INFINITY else min(hard, _MEMORY)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its own time limits are off
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no verdict
    speed_up()
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        timeout, pairs = json.loads(line)
        for verdict in judge(pairs, timeout):
            print(json.dumps(verdict), file=replies, flush=True)


def _end_with_parent(parent: int) -> None:
    """A fork of the parent may hold the pipe open for good."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def judge(pairs: list[tuple[str, str]], timeout: float) -> Iterator[float | None]:
    """The verdict on each (reference, completion); in the main thread of a process that handles SIGPROF."""
    from math_verify import verify

    golds: dict[str, Any] = {}
    for gold, completion in pairs:
        if gold not in golds:
            golds[gold] = _limited(timeout, functools.partial(_parse, gold, True), [])
        compare = functools.partial(_verify, verify, golds[gold], completion)
        yield _limited(timeout, compare, 0.0) if golds[gold] else None


def _verify(verify: Callable[..., bool], gold: Any, completion: str) -> float:
    return float(verify(gold, _parse(completion, False), timeout_seconds=None))


def _parse(text: str, is_gold: bool) -> Any:
    return (_cached_parse if len(text) <= _CACHED else _parse_anew)(text, is_gold)


def _parse_anew(text: str, is_gold: bool) -> Any:
    """As TRL's accuracy_reward parses a solution and a completion."""
    from latex2sympy2_extended import NormalizationConfig  # type: ignore[import-untyped]
    from math_verify import LatexExtractionConfig, parse

    if is_gold:
        return parse(text, parsing_timeout=None)
    config = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
    )
    return parse(text, extraction_config=[config], extraction_mode="first_match", parsing_timeout=None)


_cached_parse = functools.lru_cache(_CACHE)(_parse_anew)


def speed_up() -> None:
    """Make math-verify faster in this process; what it finds stays the same.

    - ANTLR parses by SLL prediction and, where that finds an error, again by LL. SLL gives LL's tree or an error
      (antlr4's PredictionMode), in a twentieth of the time for tuples and intervals.
    - Digits become an integer at once; sympy would compile and run a program for them.
    - What differs by value is not simplified first: simplify would never find it equal.
    - The patterns of both extraction configs are kept; math-verify has room for one.
    """
    from latex2sympy2_extended import latex2sympy2
    from math_verify import grader, parser

    latex2sympy2.PSParser.math = _in_two_stages(latex2sympy2.PSParser.math)
    reader = latex2sympy2._Latex2Sympy
    reader.parse_number = _digits_at_once(reader.parse_number)
    grader.sympy_symbolic_eq = _unless_they_differ(grader.sympy_symbolic_eq)
    parser.lazy_latex_regex = functools.lru_cache(2)(parser.lazy_latex_regex.__wrapped__)


def _in_two_stages(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    from antlr4 import CommonTokenStream  # type: ignore[import-untyped]
    from antlr4.atn.PredictionMode import PredictionMode  # type: ignore[import-untyped]

    def parse_in_two_stages(parser: Any) -> Any:
        try:
            parser._interp.predictionMode = PredictionMode.SLL
            return parse(parser)
        except Exception:
            lexer = parser.getTokenStream().tokenSource  # it may have raised, and would go on behind the error
            lexer.reset()
            parser.setTokenStream(CommonTokenStream(lexer))
            parser._interp.predictionMode = PredictionMode.LL
            return parse(parser)

    return parse_in_two_stages


def _digits_at_once(parse: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    from sympy import Integer  # type: ignore[import-untyped]

    def parse_digits_at_once(reader: Any, text: str) -> Any:
        digits = text.replace(",", "")
        plain = digits.isascii() and digits.isdigit() and len(digits) < 100
        return Integer(digits) if plain else parse(reader, text)

    return parse_digits_at_once


def _unless_they_differ(equal: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def equal_unless_they_differ(a: Any, b: Any) -> bool:
        try:
            if _is_surely_not_zero(a - b):
                return False
        except Exception:  # no numbers, or none that have a value: the library knows what to do
            pass
        return equal(a, b)

    return equal_unless_they_differ


def _is_surely_not_zero(difference: Any) -> bool:
    """A finite number that is not near 0, or a polynomial with rational coefficients that is not 0."""
    from sympy import Derivative, Limit, Poly
    from sympy.concrete.expr_with_limits import ExprWithLimits  # type: ignore[import-untyped]

    if difference.free_symbols:
        polynomial = Poly(difference, *difference.free_symbols)
        return bool((polynomial.domain.is_ZZ or polynomial.domain.is_QQ) and not polynomial.is_zero)
    return bool(not difference.has(ExprWithLimits, Limit, Derivative) and 1e-6 < abs(difference.evalf(15)) < 1e15)


class _TimeLimit(BaseException):
    """Not an Exception: math-verify swallows those."""


def _raise_time_limit(*_: Any) -> None:
    raise _TimeLimit


def _limited(timeout: float, function: Callable[[], Any], otherwise: Any) -> Any:
    """What the function returns, or `otherwise` where it takes too long, too much memory or too deep a recursion.

    The time is the processor's: that other processes hold this one up is not the answer's fault. Inside one operation
    on huge integers no signal is handled: where it takes far too long the system ends the process.
    """
    try:
        try:
            _end_at(time.process_time() + 1.25 * timeout + 1.0)
            signal.setitimer(signal.ITIMER_PROF, timeout, 0.2)  # again in case the library swallows the first
            return function()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except (_TimeLimit, MemoryError, RecursionError):
        signal.setitimer(signal.ITIMER_PROF, 0)
        return otherwise


def _end_at(seconds: float) -> None:
    """Let the system end the process when it has had so much time, rounded up."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main()
