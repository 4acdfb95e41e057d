"""Runs Python programs that nobody has read, and gives back what they wrote.

Warm interpreters wait for programs and run one at a time each. What stands around a program:

- bubblewrap: the interpreter is inside `bwrap`. It sees /usr and Python's own folder, read-only, and nothing else of
  this machine: no other file, no network, no process, no environment. Each program has in addition namespaces of its
  own (files, processes, network, IPC), an empty /tmp of 64 MiB as the only place to write, no capabilities, a filter of
  system calls, a user id that nobody else has (where we are root), and limits on time, memory, processes and output.
  Nothing of it is left when it ends.
- Without bubblewrap, for `allow_unsafe` alone: the same without `bwrap`. Where the kernel lets us make namespaces, a
  program has no network, sees no other process and writes to its /tmp alone, but reads what this user can read. Where
  not, as in most containers, the filter keeps it from the network and from signals to others, but it reads and writes
  what this user can (where we are root: what a user that is nobody can).

Where the kernel does not hold a program to a number of processes (before Linux 5.14; for a root whose Python is in a
folder of its own; without both namespaces and root), the filter lets it start threads alone.

Neither protects from holes in the kernel. For machines elsewhere: `register_code_runner`.
"""

import atexit
import functools
import logging
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Protocol, TypeVar

from trl_ext.errors import ConfigError, RewardError
from trl_ext.rewards.sandbox_interpreter import Interpreter, Limits, Result

__all__ = ["Limits", "LocalRunner", "Result", "Runner", "get_runner", "register_code_runner"]

PYTHON: str = getattr(sys, "_base_executable", None) or sys.executable  # not the link in a venv


class Runner(Protocol):
    """Runs a Python program on some input, within limits. Called from several threads at a time."""

    def __call__(self, program: str, stdin: bytes, limits: Limits) -> Result: ...


RunnerType = TypeVar("RunnerType", bound=Runner)
_RUNNERS: dict[str, Runner] = {}


def register_code_runner(name: str) -> Callable[[RunnerType], RunnerType]:
    """Decorator that registers a function `(program, stdin, limits) -> Result` as the runner `name` of a spec.

    Raises:
        ConfigError: the name is taken.
    """

    def register(runner: RunnerType) -> RunnerType:
        if name == "bubblewrap" or name in _RUNNERS:
            raise ConfigError(f"code runner {name!r} is registered already: choose another name")
        _RUNNERS[name] = runner
        return runner

    return register


def get_runner(name: str = "bubblewrap", allow_unsafe: bool = False, programs: tuple[str, ...] = ()) -> Runner:
    """The runner of that name. A local one compiles `programs`, which must be trusted, once and not at each run.

    Raises:
        ConfigError: there is none, or bubblewrap does not work here and `allow_unsafe` is False.
    """
    if name in _RUNNERS:
        return _RUNNERS[name]
    if name != "bubblewrap":
        raise ConfigError(f"runner = {name!r}: must be one of {', '.join(sorted(['bubblewrap', *_RUNNERS]))}")
    problem = _problem_with_bubblewrap()
    if problem and not allow_unsafe:
        raise ConfigError(f"runner = 'bubblewrap': {problem}; or set allow_unsafe: true, see docs/rewards.md")
    return _local_runner(not problem, programs)


@functools.cache
def _local_runner(bubblewrap: bool, programs: tuple[str, ...]) -> "LocalRunner":
    if not bubblewrap:
        logging.getLogger(__name__).warning("allow_unsafe: code of completions runs without bubblewrap, half isolated")
    return LocalRunner(bubblewrap, programs)


@functools.cache
def _problem_with_bubblewrap() -> str:
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed: apt-get install bubblewrap"
    try:
        with closing(LocalRunner()) as run:
            works = run("print(6 * 7)", b"", Limits(10.0)) == Result(b"42\n", 0)
    except RewardError as error:
        return f"bubblewrap makes no sandbox here ({error}): allow user namespaces"
    return "" if works else "a program does not run in bubblewrap here: see `journalctl -k` for why"


class LocalRunner:
    """Runs programs in interpreters that it starts when they are needed and keeps: as many as run at the same time.

    For the tests: `namespaces` = False does without any, `python` is another interpreter.
    """

    def __init__(
        self,
        bubblewrap: bool = True,
        programs: tuple[str, ...] = (),
        namespaces: bool = True,
        python: str = PYTHON,
    ):
        self._start = functools.partial(Interpreter, bubblewrap, programs, namespaces, os.path.realpath(python))
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def __call__(self, program: str, stdin: bytes, limits: Limits) -> Result:
        """Run a program.

        Raises:
            RewardError: no interpreter can be started; the message is one line.
        """
        for _ in range(2):
            try:
                interpreter = self._idle.pop()
            except IndexError:
                interpreter = self._starter.submit(self._start).result()
            result = interpreter.run(program, stdin, limits)
            if result is not None:
                self._idle.append(interpreter)
                return result
            interpreter.close()
        return Result(b"", 1, "sandbox")

    def close(self) -> None:
        """End the interpreters; the next program starts one."""
        while self._idle:
            self._idle.pop().close()

    def _forget(self) -> None:
        """Begin without interpreters: those of a fork's parent are its parent's."""
        for interpreter in getattr(self, "_idle", []):
            interpreter.release()
        self._idle: list[Interpreter] = []
        # With `--die-with-parent` they die with the thread that started them
        self._starter = ThreadPoolExecutor(1, "sandbox")
