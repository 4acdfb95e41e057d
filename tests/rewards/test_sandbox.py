import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rewards.sandboxes import descendants, is_alive, make_runner
from trl_ext.errors import ConfigError
from trl_ext.rewards import sandbox
from trl_ext.rewards.sandbox import Limits, LocalRunner, Result, get_runner, register_code_runner

LIMITS = Limits(seconds=20, memory=256 << 20, output=100_000)


@pytest.fixture(scope="module", params=["bubblewrap", "unsafe", "bare"])
def runner(request: pytest.FixtureRequest) -> Iterator[LocalRunner]:
    runner = make_runner(request.param)
    runner("", b"", LIMITS)
    yield runner
    runner.close()


def test_many_threads_share_a_runner(runner: LocalRunner) -> None:
    results: dict[int, Result] = {}

    def work(number: int) -> None:
        for i in range(number, 40, 4):
            results[i] = runner(f"print({i})", b"", LIMITS)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: Result(f"{i}\n".encode(), 0) for i in range(40)}
    assert 1 <= len(runner._idle) <= 4
    while len(runner._idle) > 1:
        runner._idle.pop().close()


def test_prepared_programs_run_as_others_do() -> None:
    runner = LocalRunner(bubblewrap=False, programs=("print(6 * 7)",))
    assert runner("print(6 * 7)", b"", LIMITS) == runner("print(6 * 7) ", b"", LIMITS) == Result(b"42\n", 0)
    runner.close()


def test_an_interpreter_that_died_is_replaced(runner: LocalRunner) -> None:
    (interpreter,) = runner._idle
    interpreter._process.kill()
    interpreter._process.wait()
    assert runner("print(1)", b"", LIMITS) == Result(b"1\n", 0)
    assert runner._idle != [interpreter]


def test_a_sandbox_that_breaks_twice_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = LocalRunner(bubblewrap=False)
    monkeypatch.setattr(sandbox.Interpreter, "run", lambda *_: None)
    assert runner("print(1)", b"", LIMITS).stopped == "sandbox"


def test_a_fork_has_interpreters_of_its_own() -> None:
    runner = LocalRunner(bubblewrap=False)
    runner("", b"", LIMITS)

    def work(results: "multiprocessing.Queue[tuple[Result, int]]") -> None:
        results.put((runner("print(2)", b"", LIMITS), runner._idle[0]._process.pid))

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=work, args=(results,))
    process.start()
    result, interpreter = results.get(timeout=60)
    assert result == Result(b"2\n", 0)
    assert interpreter != runner._idle[0]._process.pid
    process.join(60)
    assert process.exitcode == 0
    assert runner("print(1)", b"", LIMITS) == Result(b"1\n", 0)
    runner.close()


SCRIPT = """
    import sys, threading
    from trl_ext.rewards.sandbox import Limits, LocalRunner
    runner = LocalRunner(bubblewrap=sys.argv[1] == "bubblewrap")
    runner("", b"", Limits(10))
    print(runner._idle[0]._process.pid, flush=True)
    input()
    threading.Thread(target=runner, args=("import time; time.sleep(1000)", b"", Limits(1000)), daemon=True).start()
    input()
"""


@pytest.mark.parametrize("kind", ["bubblewrap", "unsafe"])
@pytest.mark.parametrize("end", ["killed", "ended"])
def test_nothing_is_left_when_the_trainer_is_killed_or_ends(kind: str, end: str, tmp_path: Path) -> None:
    make_runner(kind).close()
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    command, pipe = [sys.executable, str(path), kind], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            interpreter = int(process.stdout.readline())
            before = descendants(interpreter)
            process.stdin.write("\n")
            process.stdin.flush()
            deadline = time.monotonic() + 60
            while not (left := descendants(interpreter)) - before and time.monotonic() < deadline:
                time.sleep(0.05)
            assert left - before  # the program
            if end == "killed":
                process.kill()
            else:
                process.stdin.write("\n")
                process.stdin.flush()
            process.wait(60)
        finally:
            process.kill()
    deadline = time.monotonic() + 60
    while any(map(is_alive, [interpreter, *left])) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, [interpreter, *left]))


@pytest.fixture
def without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    which = sandbox.shutil.which
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None if name == "bwrap" else which(name))
    sandbox._problem_with_bubblewrap.cache_clear()
    sandbox._local_runner.cache_clear()
    yield
    sandbox._problem_with_bubblewrap.cache_clear()
    sandbox._local_runner.cache_clear()


@pytest.mark.usefixtures("without_bubblewrap")
def test_without_bubblewrap_nothing_runs_unless_one_allows_it(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"apt-get install bubblewrap; or set allow_unsafe: true") as error:
        get_runner()
    assert "\n" not in str(error.value)
    assert not caplog.records
    runner = get_runner(allow_unsafe=True)
    assert "without bubblewrap" in caplog.text
    assert runner("print(1)", b"", LIMITS) == Result(b"1\n", 0)


def test_bubblewrap_that_makes_no_namespaces_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sandbox._problem_with_bubblewrap.cache_clear()
    try:
        with pytest.raises(
            ConfigError, match=r"No permissions to create new namespace\): allow user namespaces; or set"
        ):
            get_runner()
    finally:
        sandbox._problem_with_bubblewrap.cache_clear()


def test_a_runner_of_the_users_own_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_RUNNERS", {})

    @register_code_runner("elsewhere")
    def elsewhere(program: str, stdin: bytes, limits: Limits) -> Result:
        return Result(b"far away", 0)

    assert get_runner("elsewhere") is elsewhere
    with pytest.raises(ConfigError, match="'elsewhere' is registered already"):
        register_code_runner("elsewhere")(elsewhere)
    with pytest.raises(ConfigError, match="runner = 'nowhere': must be one of bubblewrap, elsewhere"):
        get_runner("nowhere")
