"""Whether the answer of a completion equals the reference as mathematics, judged in worker processes."""

import contextlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trl_ext.errors import MissingExtraError
from trl_ext.rewards.cores import own_cores
from trl_ext.rewards.registry import register_reward
from trl_ext.rewards.text import last_boxed

Pair = tuple[str, str]  # (reference, completion)

_WORKER = Path(__file__).with_name("math_worker.py")


@register_reward("math", leans_on="math-verify", extra="rewards", cost="1 ms", waits=True)
class MathVerify:
    """1 where the completion's answer equals the reference as mathematics, 0 where not (math-verify).

    The parse is that of TRL's `accuracy_reward`: LaTeX in `\\boxed{}` first, or after "answer", in the completion;
    LaTeX or a plain expression in the reference. A reference that does not parse is not scored.

    Runs in worker processes, up to 8 and one for each core that is left to this process, shared by all `math` rewards
    of the process; POSIX only. Of a completion only the part that decides goes there, equal answers to one reference go
    once, and integers are compared here. `timeout` is the limit in seconds of processor time for a completion, past
    which it is 0, and for a reference, past which it is not scored (`accuracy_reward`: 10 s a parse, 5 s a comparison,
    by the clock). A worker may take 4 GiB; one that does not react to the limit is killed.
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
            answer = decisive(completion)
            rows.append([(str(reference), answer) for reference in several if reference is not None])
        verdicts: dict[Pair, float | None] = {pair: at_sight(*pair) for row in rows for pair in row}
        # Sorted, those of one reference are side by side, and a worker parses it once
        verdicts |= _POOL.judge(sorted(pair for pair, verdict in verdicts.items() if verdict is None), self.timeout)
        known = [[score for pair in row if (score := verdicts[pair]) is not None] for row in rows]
        return [max(scores, default=None) for scores in known]


_ANSWER = re.compile(r"(?i:answer)")
_LATEX = re.compile(r"[$\[]|\\[(f]")
_PERCENT = re.compile(r"%|[Pp]ercent|[Pp]ct")
_INTEGER = re.compile(r"(\\boxed\{)?(0|-?[1-9](?:\d{0,14}|\d{0,2}(?:,\d{3}){1,4}))(?(1)\})", re.ASCII)


def decisive(completion: str) -> str:
    """A text that math-verify judges as it does the completion, and far shorter where one answer is boxed.

    It decides by the pattern whose match ends last, of three: a box up to the last brace of the text; a box within
    dollars or brackets; an expression within these between "final answer is" and "I hope". Whichever of the first two
    it is, a single box is then looked for in the match, and its content is the answer; a percent sign after the
    closing dollar divides it by 100.
    """
    if "\\boxed{" not in completion:  # then each pattern has "answer" and LaTeX behind it
        may_answer = _ANSWER.search(completion) and _LATEX.search(completion)
        return completion if may_answer else ""
    if completion.count("\\boxed") > 1 or "\\fbox" in completion or "I hope" in completion:
        return completion
    content = last_boxed(completion)
    box = f"\\boxed{{{content}}}"
    return box if content and not _PERCENT.search(completion.partition(box)[2]) else completion


_PART = r"-?\d{1,9}(?:\\pi)?"
_PLAIN = re.compile(
    rf"(?! *$)(?:\d{{1,9}}(?:\.\d{{1,9}})?(?![\d.])|x(?:\^[2-9])?|[ ,()\[\]+-]|\\pi|\\infty"
    rf"|\\(?:d?frac\{{{_PART}\}}|sqrt)\{{{_PART}\}}(?! *\d))+",
    re.ASCII,
)


def at_sight(reference: str, answer: str) -> float | None:
    """The verdict where it needs no math-verify, else None.

    Both are integers, with or without separators, or the answer is missing; or both are the same plain LaTeX, which
    math-verify leaves as it is on both sides and compares as text at last.
    """
    ours, theirs = _INTEGER.fullmatch(answer), _INTEGER.fullmatch(reference)
    if theirs and not theirs[1]:
        if not answer:
            return 0.0
        if ours and ours[1]:
            return float(ours[2].replace(",", "") == theirs[2].replace(",", ""))
    content = answer.removeprefix("\\boxed{").removesuffix("}")
    if answer == f"\\boxed{{{content}}}" and reference == f"${content}$" and _PLAIN.fullmatch(content):
        return 1.0
    return None


_CHUNK = 8


class _MathPool:
    """Worker processes that start with the first batch and are replaced when one of them dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.idle: list[_Worker] = []
        self.workers = own_cores(most=8)

    def judge(self, pairs: list[Pair], timeout: float) -> dict[Pair, float | None]:
        """The verdict on every pair."""
        size = max(1, min(_CHUNK, -(-len(pairs) // (2 * self.workers))))
        chunks = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        with self._lock, ThreadPoolExecutor(self.workers) as threads:  # one batch at a time: no more workers than that
            verdicts = threads.map(lambda chunk: self._judge_chunk(chunk, timeout), chunks)
            return {pair: verdict for chunk in verdicts for pair, verdict in chunk}

    def _judge_chunk(self, chunk: list[Pair], timeout: float) -> list[tuple[Pair, float | None]]:
        verdicts: list[float | None] = []
        died_at = -1
        while len(verdicts) < len(chunk):
            worker = None
            if died_at != len(verdicts):
                with contextlib.suppress(IndexError):
                    worker = self.idle.pop()
            worker = worker or _Worker()
            try:
                for verdict in worker.judge(chunk[len(verdicts) :], timeout):
                    verdicts.append(verdict)
            except (EOFError, BrokenPipeError):
                worker.kill()
                if died_at == len(verdicts):  # once may be the system's doing; a new worker that dies is the pair's
                    verdicts.append(0.0)
                died_at = len(verdicts)
            else:
                self.idle.append(worker)
        return list(zip(chunk, verdicts, strict=True))


class _Worker:
    def __init__(self) -> None:
        # By its path, as -m would import the package; -P keeps the files beside it (code.py) from being imported
        command = [sys.executable, "-P", str(_WORKER)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._requests, self._replies = self.process.stdin, self.process.stdout
        if self._replies.readline() != "ready\n":
            self.kill()
            raise RuntimeError("a worker process of the reward 'math' does not start: its own message is above")

    def judge(self, pairs: list[Pair], timeout: float) -> Iterator[float | None]:
        """The verdicts, each when it is known.

        Raises:
            EOFError, BrokenPipeError: the worker died.
        """
        print(json.dumps([timeout, pairs]), file=self._requests, flush=True)
        for _ in pairs:
            reply = self._replies.readline()
            if not reply:
                raise EOFError
            yield json.loads(reply)

    def kill(self) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError), self.process:  # closes the pipes and waits
            pass


_POOL = _MathPool()
os.register_at_fork(after_in_child=lambda: _POOL.__init__())  # type: ignore[misc]  # the workers are its parent's
