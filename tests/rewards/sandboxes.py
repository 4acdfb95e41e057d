"""What the tests of the sandbox and of the `code` reward share."""

import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from trl_ext.errors import RewardError
from trl_ext.rewards import make_reward, sandbox
from trl_ext.rewards.sandbox import Limits, LocalRunner

ADD = "def add(a, b):\n    return a + b\n"
SPEC = {"type": "code", "timeout": 20.0, "allow_unsafe": os.environ.get("CI") != "true"}
PARTIAL = {**SPEC, "partial": True}


def score(program: str, target: Any, **options: Any) -> float | None:
    return make_reward({**SPEC, **options})([textwrap.dedent(program)], target=[target])[0]


def make_runner(kind: str) -> LocalRunner:
    """A local runner: "bubblewrap", "unsafe" (the fallback), "uncounted" (the fallback where the kernel does not count
    processes) or "bare" (the fallback where there are no namespaces).
    """
    if kind == "bubblewrap":
        problem = sandbox._problem_with_bubblewrap()
        if problem and os.environ.get("CI") != "true":
            pytest.skip(problem)
        assert not problem, problem
        return LocalRunner()
    # Root's programs are another user's, and counted, where that user may read Python
    for python in (sandbox.PYTHON, "/usr/bin/python3"):
        runner = LocalRunner(bubblewrap=False, namespaces=kind != "bare", python=python)
        try:
            harmless = runner("import os; os.kill(os.getpid(), 0)", b"", Limits(10))
        except (RewardError, OSError):
            continue
        if kind == "bare":
            assert harmless.status == 1, "programs can send signals: a hostile one would end the tests and more"
        if kind == "bare" or runner._idle[0].abilities["counts_processes"] == (kind == "unsafe"):
            return runner
        runner.close()
    pytest.skip("there is no Python that it needs, in a folder that others may enter or may not")


def descendants(process: int) -> set[int]:
    """The processes below a process, without zombies."""
    found: set[int] = set()
    waiting = [process]
    while waiting:
        parent = waiting.pop()
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
        if parent != process and is_alive(parent):
            found.add(parent)
    return found


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
