import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rewards.sandboxes import descendants, make_runner
from trl_ext.rewards import sandbox, sandbox_inside
from trl_ext.rewards.sandbox import Limits, LocalRunner, Result

LIMITS = Limits(seconds=20, memory=256 << 20, output=100_000)
SHORT = Limits(seconds=1)


@pytest.fixture(scope="module", params=["bubblewrap", "unsafe", "uncounted", "bare"])
def runner(request: pytest.FixtureRequest) -> Iterator[LocalRunner]:
    runner = make_runner(request.param)
    runner("", b"", LIMITS)
    yield runner
    runner.close()


def run(runner: LocalRunner, program: str, limits: Limits = LIMITS, stdin: bytes = b"") -> Result:
    """Run a program, and see that nothing of it is left and that the next one is well."""
    (interpreter,) = runner._idle
    before = descendants(interpreter._process.pid)
    result = runner(textwrap.dedent(program), stdin, limits)
    assert runner._idle == [interpreter]
    assert descendants(interpreter._process.pid) == before
    assert runner("print(input())", b"well\n", LIMITS) == Result(b"well\n", 0)
    return result


def abilities(runner: LocalRunner) -> dict[str, bool]:
    return runner._idle[0].abilities


def needs_processes(runner: LocalRunner) -> None:
    if not abilities(runner)["counts_processes"]:
        pytest.skip("a program starts no process where the kernel does not count them")


def test_a_program_reads_stdin_and_writes_stdout(runner: LocalRunner) -> None:
    program = "import sys; print(sum(map(int, sys.stdin)), __name__)"
    assert run(runner, program, stdin=b"1\n2\n") == Result(b"3 __main__\n", 0)


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("import sys; print(1); sys.exit()", 0),
        ("import sys; print(1); sys.exit(3)", 3),
        ("import sys; print(1); sys.exit('words')", 1),
        ("print(1, flush=True); 1 / 0", 1),
        ("print(1, flush=True); import os; os._exit(7)", 7),
        ("print(1, flush=True); import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
        ("import threading; threading.Thread(target=lambda: print(1)).start()", 0),
    ],
)
def test_a_program_ends_as_python_ends_it(runner: LocalRunner, program: str, status: int) -> None:
    assert run(runner, program) == Result(b"1\n", status)


@pytest.mark.parametrize("program", ["1 +", "\0", "\ud800", "x = '\ud800'", "(" * 100_000, "-" * 1_000_000 + "1"])
def test_what_is_no_program_fails(runner: LocalRunner, program: str) -> None:
    assert run(runner, program).status != 0


def test_a_program_may_write_to_its_folder_and_start_processes(runner: LocalRunner) -> None:
    needs_processes(runner)
    program = """
        import pathlib, subprocess, tempfile
        pathlib.Path("file").write_text("text")
        with tempfile.TemporaryFile() as file:
            file.write(b"1")
        print(subprocess.run(["cat", "file"], capture_output=True, text=True).stdout)
    """
    assert run(runner, program) == Result(b"text\n", 0)
    assert run(runner, "import os; print(os.listdir())") == Result(b"[]\n", 0)


def test_output_up_to_the_limit_is_kept_and_no_more(runner: LocalRunner) -> None:
    assert run(runner, "print('x' * 99_999)") == Result(b"x" * 99_999 + b"\n", 0)
    result = run(runner, "print('x' * 100_000)")
    assert (result.stdout, result.stopped) == (b"x" * 100_000, "output")


# What stops it, or None where the program gives up by itself
HOGS = {
    "fork_bomb": (
        """
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
        """,
        "processes",
    ),
    "fork_bomb_of_daemons": (
        """
        import os
        while True:
            try:
                if os.fork() == 0:
                    os.setsid()
            except OSError:
                pass
        """,
        "processes",
    ),
    "threads": (
        """
        import os, threading, time
        for _ in range(1000):
            try:
                threading.Thread(target=time.sleep, args=(60,)).start()
            except RuntimeError:
                os._exit(1)
        """,
        ("processes", None),
    ),
    "memory": ("x = bytearray(10**10)", None),
    "memory_bit_by_bit": ("x = []\nwhile True: x.append(bytes(10**6))", None),
    "memory_of_many": (
        """
        import os, time
        for _ in range(6):
            if os.fork() == 0:
                x = b"1" * (100 << 20)
                time.sleep(60)
        time.sleep(60)
        """,
        "memory",
    ),
    "files": ("import itertools\nfor i in itertools.count(): open(str(i), 'wb').write(bytes(10**7))", None),
    "one_file": ("file = open('file', 'wb')\nwhile True: file.write(bytes(10**6))", None),
    "output": ("while True: print('x' * 1000)", "output"),
    "output_of_nulls": ("import os\nwhile True: os.write(1, bytes(10**5))", "output"),
    "output_of_emoji": ("while True: print('\\U0001f642\\u202e' * 1000)", "output"),
    "output_against_a_closed_pipe": (
        """
        import os
        while True:
            try:
                os.write(1, bytes(10**5))
            except OSError:
                pass
        """,
        "output",
    ),
}


@pytest.mark.parametrize("name", HOGS)
def test_a_hog_is_stopped(runner: LocalRunner, name: str) -> None:
    program, stopped = HOGS[name]
    if "fork" in program:
        needs_processes(runner)
    if name == "files" and not abilities(runner)["namespaces"]:
        pytest.skip("without namespaces nothing limits the number of files")
    result = run(runner, program)
    assert result.status != 0
    assert result.stopped in (stopped if isinstance(stopped, tuple) else (stopped,))


def test_where_processes_are_not_counted_a_program_starts_threads_alone() -> None:
    runner = make_runner("uncounted")
    program = """
        import ctypes, os, subprocess, threading
        for start in (
            os.fork,
            lambda: subprocess.run(["true"]),
            lambda: os.posix_spawn("/bin/true", ["true"], {}),
            ctypes.CDLL(None, use_errno=True).vfork,
        ):
            try:
                print("" if start() == -1 else "started", end="")
            except OSError:
                pass
        threading.Thread(target=print, args=("thread",)).start()
    """
    assert run(runner, program) == Result(b"thread\n", 0)
    runner.close()


def test_processes_are_counted_up_to_the_limit_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be started faster than they can be counted."""
    monkeypatch.setattr(sandbox_inside, "descendants", lambda: itertools.repeat(os.getpid()))
    assert sandbox_inside.census(16)[0] > 16


IDLERS = {
    "sleep": "import time; time.sleep(1000)",
    "loop": "while True: pass",
    "one_long_operation": "10 ** 10 ** 9",
    "deaf": """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            pass
    """,
    "thread": "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()",
    "without_files": "import os, time; os.closerange(0, 1000); time.sleep(1000)",
    "stopped": "import os, signal, time; os.kill(os.getpid(), signal.SIGSTOP); time.sleep(1000)",
}


@pytest.mark.parametrize("name", IDLERS)
def test_a_program_that_does_not_end_is_ended(runner: LocalRunner, name: str) -> None:
    if name == "stopped" and not abilities(runner)["namespaces"]:
        pytest.skip("no program may send signals")
    assert run(runner, IDLERS[name], SHORT) == Result(b"", -signal.SIGKILL, "time")


def test_a_daemon_does_not_survive(runner: LocalRunner) -> None:
    needs_processes(runner)
    program = """
        import os, signal, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.closerange(0, 1000)
                time.sleep(1000)
            os._exit(0)
        os.wait()
        print("gone")
    """
    assert run(runner, program) == Result(b"gone\n", 0)  # and run() sees that no process is left


def test_a_program_cannot_signal_another_process(runner: LocalRunner) -> None:
    program = f"""
        import os
        for process in (-1, 0, 1, {os.getpid()}, {os.getppid()}):
            try:
                os.kill(process, 9)
            except OSError:
                pass
            try:
                os.killpg(process, 9)
            except OSError:
                pass
        print("done")
    """
    victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert run(runner, program.replace("(-1,", f"(-1, {victim.pid},")).stdout in (b"done\n", b"")
    assert victim.poll() is None
    victim.communicate(b"\n")
    assert victim.returncode == 0


def test_a_program_cannot_reach_the_network(runner: LocalRunner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        program = f"""
            import socket
            socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), timeout=5).sendall(b"x")
            print("reached")
        """
        assert run(runner, program) == Result(b"", 1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_program_does_not_see_the_environment(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXT_TEST_SECRET", "forty-two")
    runner.close()
    runner("", b"", LIMITS)
    program = """
        import glob, os
        found = str(os.environ)
        for path in glob.glob("/proc/*/environ"):
            try:
                found += open(path).read()
            except OSError:
                pass
        print("forty-two" in found)
    """
    if abilities(runner)["namespaces"] or abilities(runner)["switches_user"]:
        assert run(runner, program) == Result(b"False\n", 0)


def test_a_program_does_not_write_outside(runner: LocalRunner, tmp_path: Path) -> None:
    if not (abilities(runner)["namespaces"] or abilities(runner)["switches_user"]):
        pytest.skip("it can where there are no namespaces and we are not root")
    (tmp_path / "file").write_text("mine")
    targets = [str(tmp_path / "new"), str(tmp_path / "file"), sandbox.__file__, "/usr/bin/new", "/new", "/dev/new"]
    program = f"""
        for path in {targets}:
            try:
                open(path, "a").write("x")
            except OSError:
                pass
            else:
                print(path)
    """
    assert run(runner, program) == Result(b"", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_in_bubblewrap_a_program_reads_nothing_of_this_machine(tmp_path: Path) -> None:
    runner = make_runner("bubblewrap")
    runner("", b"", LIMITS)
    program = f"""
        import os
        for path in ("/etc/passwd", "/etc/hostname", {__file__!r}, {str(tmp_path)!r}, "/home", "/sys", "/var"):
            if os.path.exists(path):
                print(path)
        print(os.listdir("/proc"), os.listdir("/tmp"), os.getpid())
    """
    assert run(runner, program) == Result(b"[] [] 1\n", 0)
    runner.close()


def test_a_program_has_no_rights_and_cannot_get_any(runner: LocalRunner) -> None:
    program = """
        import ctypes, os, struct
        libc = ctypes.CDLL(None, use_errno=True)
        sets = ctypes.create_string_buffer(24)
        libc.capget(struct.pack("Ii", 0x20080522, 0), sets)
        print(any(sets.raw), libc.unshare(0x10000000), libc.mount(b"x", b"/tmp", b"tmpfs", 0, None))
        print(libc.syscall(56 if os.uname().machine == "x86_64" else 220, 0x10000000 | 17, 0, 0, 0, 0))
        try:
            os.setuid(0)
            print(os.getuid())
        except OSError:
            print(0)
        print(libc.prctl(39, 0, 0, 0, 0))
    """
    assert run(runner, program) == Result(b"False -1 -1\n-1\n0\n1\n", 0)
    assert run(runner, "import os; os.memfd_create('x')").status == 1  # memory that no limit would count


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give user ids")
def test_in_bubblewrap_the_programs_of_root_have_user_ids_of_their_own() -> None:
    runner = make_runner("bubblewrap")
    users = {runner("import os; print(*os.getresuid(), *os.getresgid())", b"", LIMITS).stdout for _ in range(5)}
    assert len(users) > 1
    for user in users:
        assert len(set(user.split())) == 1
        assert int(user.split()[0]) > 3 << 30
    runner.close()


def test_a_program_has_no_files_but_its_own(runner: LocalRunner) -> None:
    """The socket by which the interpreter reports would be one to forge results by."""
    program = """
        import os
        for file in range(3, 4096):
            try:
                os.fstat(file)
                print(file)
            except OSError:
                pass
        try:
            os.pwrite(0, b"x", 0)
        except OSError:
            print("sealed")
    """
    assert run(runner, program, stdin=b"text") == Result(b"sealed\n", 0)


def test_programs_do_not_see_each_other(runner: LocalRunner) -> None:
    first = "import builtins, json; builtins.mark = json.mark = 1; open('mark', 'w').write('1')"
    second = "import builtins, json, os; print(hasattr(builtins, 'mark'), hasattr(json, 'mark'), os.listdir())"
    assert run(runner, first).status == 0
    assert run(runner, second) == Result(b"False False []\n", 0)
