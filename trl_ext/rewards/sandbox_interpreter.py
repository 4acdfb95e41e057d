"""An interpreter that waits for programs inside a sandbox: how it is started and talked to, from outside."""

import fcntl
import functools
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trl_ext.errors import RewardError

_USERS = 3 << 30  # as in sandbox_inside.py
_STARTING, _GRACE = 30.0, 10.0  # seconds: to start, and to answer when a program's time is over


@dataclass(frozen=True)
class Limits:
    """What one program may take. Of memory, in bytes, each of its processes and all together; of output, bytes."""

    seconds: float
    memory: int = 512 << 20
    output: int = 1 << 20
    processes: int = 16


@dataclass(frozen=True)
class Result:
    """What a program wrote to stdout, up to the limit, and its exit status, -N where signal N killed it.

    `stopped` is the limit that it ran into: "time", "memory" and "processes" (of all together), "output", or "sandbox"
    where that broke, twice.
    """

    stdout: bytes
    status: int
    stopped: str | None = None


class Interpreter:
    """A process that runs `sandbox_inside.py`, and the socket to it.

    Raises:
        RewardError: it does not start; the message is the last line that it said.
    """

    def __init__(self, bubblewrap: bool, programs: tuple[str, ...], namespaces: bool, executable: str):
        inside = Path(__file__).with_name("sandbox_inside.py").read_text(encoding="utf-8")
        configuration = json.dumps({"namespaces": namespaces, "programs": programs})
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        python = [executable, "-I", "-S", "-B", "-X", "utf8", "-c", inside, str(theirs.fileno()), configuration]
        with theirs, tempfile.TemporaryFile() as messages:
            if not bubblewrap:
                self._process = _popen([*(_unshare() if namespaces else []), *python], messages, theirs.fileno())
            elif os.geteuid() != 0 or not self._start_mapped(python, messages, theirs.fileno()):
                self._process = _popen([*_bubblewrap(), *python], messages, theirs.fileno())
            theirs.close()
            self._socket.settimeout(_STARTING)
            try:
                started = self._socket.recv(1 << 16)
            except TimeoutError:
                started = b""
            if not started:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)  # for its last word
                self.close()
                messages.seek(0)
                said = messages.read().decode("utf-8", "replace").strip().split("\n")[-1]
                raise RewardError(said or "the sandbox does not start")
        self.abilities: dict[str, bool] = json.loads(started)
        self._socket.settimeout(None)

    def _start_mapped(self, python: list[str], messages: IO[bytes], control: int) -> bool:
        """Start with user ids to give to programs: the kernel limits all users' processes, but not root's.

        False where root is not root enough for that.
        """
        with ExitStack() as pipes:
            (said, info), (wait, go) = (map(pipes.enter_context, _pipe()) for _ in range(2))
            numbers = info.fileno(), wait.fileno()
            options = ["--info-fd", str(numbers[0]), "--userns-block-fd", str(numbers[1])]
            self._process = _popen([*_bubblewrap(*options), *python], messages, control, *numbers)
            info.close()
            wait.close()
            try:
                child = json.loads(said.read())["child-pid"]
                for name in ("uid_map", "gid_map"):
                    Path(f"/proc/{child}/{name}").write_text(f"0 0 1\n{_USERS} {_USERS} 65536\n")
                go.write(b"1")
            except (OSError, ValueError):
                self._process.kill()
                self._process.wait()
                return False
        return True

    def run(self, program: str, stdin: bytes, limits: Limits) -> Result | None:
        """The result, or None where the interpreter has died or does not answer and is of no more use."""
        request = {"seconds": limits.seconds, "memory": limits.memory, "processes": limits.processes}
        stdout, write = _pipe()
        with stdout:
            with write, _sealed(program.encode("utf-8", "surrogatepass")) as source, _sealed(stdin) as given:
                try:
                    files = [source, given, write.fileno()]
                    socket.send_fds(self._socket, [json.dumps(request).encode()], files)
                except OSError:
                    return None
            return self._collect(stdout, limits, time.monotonic() + limits.seconds + _GRACE)

    def _collect(self, stdout: IO[bytes], limits: Limits, deadline: float) -> Result | None:
        poll, output = select.poll(), bytearray()
        poll.register(stdout, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        while self._socket.fileno() not in (ready := [file for file, _ in poll.poll(_milliseconds_to(deadline))]):
            if not ready:
                return None
            chunk = stdout.read(1 << 16)
            output += chunk
            if not chunk or len(output) > limits.output:
                poll.unregister(stdout)
            if len(output) > limits.output:
                self._tell_to_stop()
        reply = self._reply()
        while (
            len(output) <= limits.output and reply and (chunk := stdout.read(1 << 16))
        ):  # all who could write are gone
            output += chunk
        if not reply:
            return None
        stopped = "output" if len(output) > limits.output else reply["stopped"]
        return Result(bytes(output[: limits.output]), reply["status"], stopped)

    def _tell_to_stop(self) -> None:
        with suppress(OSError):
            self._socket.send(b"stop")

    def _reply(self) -> dict[str, Any]:
        try:
            return json.loads(self._socket.recv(1 << 16) or b"{}")  # type: ignore[no-any-return]
        except OSError:
            return {}

    def close(self) -> None:
        """End the process, and with it what runs inside."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def release(self) -> None:
        """Let go of a process that is another's child."""
        self._socket.close()
        self._process.returncode = 0


def _milliseconds_to(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic()) * 1000


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe()
    return open(read, "rb", 0), open(write, "wb", 0)


def _popen(command: list[str], messages: IO[bytes], *files: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=messages,
        pass_fds=files,
        env={},
        cwd="/",
        start_new_session=True,  # Ctrl-C is for us
    )


@functools.cache
def _unshare() -> list[str]:
    """The command that gives a process namespaces in which it may make more; nothing where there is none."""
    command = [shutil.which("unshare") or "", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid() != 0:
        command += ["--user", "--map-root-user"]
    return command if command[0] and subprocess.run([*command, "true"], capture_output=True).returncode == 0 else []


def _bubblewrap(*options: str) -> list[str]:
    """The command up to the program: what it sees of this machine, and the rights to set programs apart."""
    command = [str(shutil.which("bwrap")), "--unshare-all", "--unshare-user", "--uid", "0", "--gid", "0", *options]
    command += ["--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--cap-drop", "ALL"]
    for right in ("SYS_ADMIN", "SETUID", "SETGID", "KILL"):  # within its user namespace
        command += ["--cap-add", f"CAP_{right}"]
    command += ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for folder in ("/bin", "/sbin", "/lib", "/lib64"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        else:
            command += ["--ro-bind-try", folder, folder]
    for prefix in {os.path.realpath(p) for p in (sys.base_prefix, sys.base_exec_prefix)}:
        if not Path(prefix).is_relative_to("/usr"):
            for parent in list(Path(prefix).parents)[-2::-1]:
                command += ["--perms", "0755", "--dir", str(parent)]  # or they are root's alone
            command += ["--ro-bind", prefix, prefix]
    command += ["--proc", "/proc", "--dev", "/dev", "--dir", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/"]
    return [*command, "--chdir", "/", "--"]


@contextmanager
def _sealed(data: bytes) -> Iterator[int]:
    """A file in memory, which nobody can change any more: stdin that needs no feeding."""
    file = os.memfd_create("program", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with open(file, "r+b", 0) as whole:
        view = memoryview(data)
        while view:
            view = view[whole.write(view) :]
        whole.seek(0)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
        yield file
