"""Whether the program in a completion passes its tests, run in a sandbox."""

import dataclasses
import json
import math
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trl_ext.rewards import code_driver
from trl_ext.rewards.code_driver import Node, decode
from trl_ext.rewards.code_tests import InputOutput, Tests, Unknown, parse_tests
from trl_ext.rewards.cores import own_cores
from trl_ext.rewards.registry import register_reward
from trl_ext.rewards.sandbox import Limits, get_runner

_DRIVER = Path(code_driver.__file__).read_text(encoding="utf-8")
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n`]*$", re.MULTILINE)
_PYTHON = ("python", "py", "python3")
_FAILED: Node = ["error", "no answer"]


class _SandboxBrokeError(Exception):
    """The sandbox broke, which is no verdict on the program."""


@register_reward("code", leans_on="bubblewrap", cost="10 ms", waits=True)
class Code:
    """1 where the program in the completion passes all its tests in a sandbox, else 0; with `partial` the share.

    The program is the last block fenced as Python (```` ```python ````, `py`, `python3`), else the last that names no
    language, else the whole text. It has the standard library of this Python, and nothing that was installed.

    `target` holds the tests of each completion, as they are or as a JSON string:

    - runs of the whole program: `{"stdin": "1 2", "stdout": "3"}` (or input and output, inputs and outputs; two lists
      of the same length are several). The exit status must be 0 and the lines equal, whitespace around them aside.
    - calls: `{"call": "add", "args": [1, 2], "kwargs": {}, "expected": 3}`. What is returned is compared as JSON holds
      it: a tuple is a list, a dict's keys are text. Floats must be equal.
    - assert lines as in MBPP (arXiv 2108.07732), with their imports: `assert add(1, 2) == 3`, one text or a list. Of
      the line only `add(1, 2)` goes inside; what comes out is compared here, as Python would. Floats must be equal
      unless the line has a tolerance: `abs(f(1) - 2.5) < 1e-6`, `math.isclose(f(1), 2.5)`. An expected value that is no
      literal (`set([1])`) is computed in a sandbox without the program.
    - a list of these. In calls and assert lines `__name__` is not "__main__".

    Tests that are malformed, and assert lines that cannot be split so (`f(1) == f(2)`, `isinstance(f(1), int)`), are
    not scored, nor is a program whose sandbox breaks twice. Only plain values can be right: None, bool, int, float,
    complex, str, bytes, list, tuple, set, frozenset, dict, and instances of their subclasses, which count as what they
    inherit from: no `__eq__` of the program's own is ever called. A program never sees what is expected. It may find
    the channel by which its values come out, but there as well only the right value for a call passes.

    All or nothing by default, as in rLLM's DeepCoder: a share pays for printing the most common answer.

    Args:
        timeout: seconds for one test, and for loading the program.
        memory_mb: for each process of a program and for all of them.
        max_output: bytes that a program may print, or its functions return, in all.
        max_processes: processes and threads of a program.
        concurrency: programs that run at the same time; unset: up to 16, one for each CPU core that the training
            processes of this machine leave to this one.
        partial: the share of tests that pass.
        allow_unsafe: where bubblewrap does not work, run without it: docs/rewards.md says what that does not stop.
        runner: the name of a runner of your own (`register_code_runner`).
    """

    def __init__(
        self,
        timeout: float = 5.0,
        memory_mb: int = 512,
        max_output: int = 1_000_000,
        max_processes: int = 16,
        concurrency: int | None = None,
        partial: bool = False,
        allow_unsafe: bool = False,
        runner: str = "bubblewrap",
    ):
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout = {timeout}: must be finite and greater than 0")
        at_least = {"memory_mb": (memory_mb, 64), "max_output": (max_output, 1), "max_processes": (max_processes, 2)}
        for name, (value, low) in {**at_least, "concurrency": (1 if concurrency is None else concurrency, 1)}.items():
            if value < low:
                raise ValueError(f"{name} = {value}: must be at least {low}")
        self.timeout, self.partial = timeout, partial
        self.concurrency = concurrency or own_cores(most=16)
        self._limits = Limits(timeout, memory_mb << 20, max_output, max_processes)
        self._run = get_runner(runner, allow_unsafe, (_DRIVER,))

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        tests: dict[str, Future[Tests | None]] = {}
        scores: dict[tuple[str, str], Future[float | None]] = {}
        rows = [(find_program(c), repr(t)) for c, t in zip(completions, target, strict=True)]
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            for (_, key), given in zip(rows, target, strict=True):
                if key not in tests:
                    tests[key] = pool.submit(self._resolve, parse_tests(given))
            for row in rows:
                if row not in scores:
                    scores[row] = pool.submit(self._score, row[0], tests[row[1]])
            return [scores[row].result() for row in rows]
        finally:
            pool.shutdown(cancel_futures=True)

    def _resolve(self, tests: Tests | None) -> Tests | None:
        """The tests with all expected values known; None where one cannot be."""
        if tests is None or not (tests.imports or any(isinstance(call.expected, Unknown) for call in tests.calls)):
            return tests
        sources = [call.expected.source for call in tests.calls if isinstance(call.expected, Unknown)]
        try:
            nodes = self._call("", tests.imports, [{"call": source} for source in sources])
            known = iter([decode(node) for node in nodes or []])
            calls = [
                dataclasses.replace(call, expected=next(known)) if isinstance(call.expected, Unknown) else call
                for call in tests.calls
            ]
        except (ValueError, TypeError, RecursionError, StopIteration, _SandboxBrokeError):
            return None
        return None if nodes is None else dataclasses.replace(tests, calls=calls)

    def _score(self, program: str, resolved: "Future[Tests | None]") -> float | None:
        tests = resolved.result()
        if tests is None:
            return None
        if not program.strip():
            return 0.0
        try:
            passed = self._passed(program, tests)
        except _SandboxBrokeError:
            return None
        total = len(tests.calls) + len(tests.inputs)
        return passed / total if self.partial else float(passed == total)

    def _passed(self, program: str, tests: Tests) -> int:
        """How many tests pass; without `partial` it may stop at the first that does not."""
        answers = self._answers(program, tests)
        passed = sum(call.passes(answer) for call, answer in zip(tests.calls, answers, strict=False))
        if self.partial or passed == len(tests.calls):
            for run in tests.inputs:
                good = self._runs_well(program, run)
                if not good and not self.partial:
                    break
                passed += good
        return passed

    def _answers(self, program: str, tests: Tests) -> list[Node]:
        """What the calls return, fewer where the program ends too soon."""
        calls, answers = [call.call for call in tests.calls], list[Node]()
        while len(answers) < len(calls):
            found = self._call(program, tests.imports, calls[len(answers) :])
            if found is None:
                break
            answers += found
            if len(answers) < len(calls):
                if not self.partial:
                    break
                answers.append(_FAILED)  # it hung, or killed the program: the others get a new one
        return answers

    def _call(self, program: str, imports: list[str], calls: list[dict[str, Any]]) -> list[Node] | None:
        """What the calls return, up to one that never does; None where the program does not even load."""
        request = {"code": program, "imports": "\n".join(imports), "calls": calls, "seconds": self.timeout}
        limits = dataclasses.replace(self._limits, seconds=self.timeout * (len(calls) + 1) + 1)
        result = self._run(_DRIVER, json.dumps(request).encode(), limits)
        if result.stopped == "sandbox":
            raise _SandboxBrokeError
        lines = result.stdout.split(b"\n")[:-1]
        if not lines or _read(lines[0]) != "ready":
            return None
        return [_read(line) for line in lines[1 : len(calls) + 1]]

    def _runs_well(self, program: str, run: InputOutput) -> bool:
        result = self._run(program, run.stdin.encode("utf-8", "replace"), self._limits)
        if result.stopped == "sandbox":
            raise _SandboxBrokeError
        return result.stopped is None and result.status == 0 and run.passes(result.stdout)


def find_program(text: str) -> str:
    """The last block fenced as Python, else the last that names no language, else the whole text.

    A fence that is not closed runs to the end. A bare fence that is alone closes one that the prompt has opened.
    """
    fences = list(_FENCE.finditer(text))
    if len(fences) == 1 and not fences[0][1] and text[: fences[0].start()].strip():
        return text[: fences[0].start()].strip("\n")
    found: dict[bool, str] = {}
    opened: re.Match[str] | None = None
    for fence in [*fences, None]:
        if opened is not None:
            language = opened[1].lower()
            if language in ("", *_PYTHON):
                found[language != ""] = text[opened.end() : fence.start() if fence else len(text)].strip("\n")
        opened = fence if opened is None or (fence and fence[1]) else None  # a language opens one even so
    return found.get(True, found.get(False, text.strip("\n")))


def _read(line: bytes) -> Node:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return _FAILED
