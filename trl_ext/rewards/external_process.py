"""A scorer that needs older libraries than ours, in a process of its own, run by the Python of another environment."""

import atexit
import contextlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from trl_ext.errors import ConfigError, RewardError

START_TIMEOUT = 1800.0  # seconds for imports, the download of the model and its way to the device
_GRACE = 2.0  # seconds after which the process ends itself where we should have killed it
_TAIL = 4000  # bytes kept of what the process prints
_WORKER = Path(__file__).parent / "workers" / "external_scorer.py"
# Of our environment variables, those that would lead the other Python to our packages, or have Lightning take the
# process for one of our training processes or a step of our Slurm job.
_OURS = re.compile(
    r"PYTHON(PATH|HOME)|(SLURM|TORCHELASTIC|ACCELERATE)_.*|((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|MASTER_\w+"
)


class ExternalProcess:
    """A scorer in another environment: started with the first batch, and anew when it dies."""

    def __init__(self, scorer: str, python: str, model: str, gpus: str, install: str):
        self._scorer, self._python, self._model, self._gpus, self._install = scorer, python, model, gpus, install
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket  # there as long as the process is
        self._printed = b""

    def score(self, rows: list[tuple[str, ...]], batch_size: int, timeout: float) -> list[float]:
        """The score of each row.

        Raises:
            RewardError: it does not start.
            TimeoutError: no scores came in time. The process is killed.
            ChildProcessError: it died twice over these rows, or what it gave is no list of scores.
        """
        message = {"rows": rows, "batch_size": batch_size, "seconds": timeout + _GRACE}
        request = json.dumps(message).encode() + b"\n"
        with self._lock:
            try:
                reply = self._ask(request, timeout) or self._ask(request, timeout)
            except BaseException:  # also Ctrl-C: the reply to these rows must not be taken for that to the next
                self.stop()
                raise
            if reply is None:
                raise ChildProcessError(f"{self._scorer}: its process died twice over a batch: {self._last_words()}")
        scores = reply.get("scores")
        if scores is None:
            raise ChildProcessError(f"{self._scorer}: {' '.join(str(reply.get('error')).split()):.500}")
        if len(scores) != len(rows):
            raise ChildProcessError(f"{self._scorer}: {len(scores)} scores for {len(rows)} texts")
        return list(scores)

    def _ask(self, request: bytes, timeout: float) -> dict[str, Any] | None:
        """The reply to a request; None where the process died."""
        if self._process is None:
            self._start()
        try:
            return self._converse(request, timeout)
        except EOFError:
            self._collect()
            return None

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        self._printed = b""
        command = [
            self._python,
            str(_WORKER),
            self._scorer,
            self._model,
            str(theirs.fileno()),
            str(START_TIMEOUT + _GRACE),
        ]
        environment = {name: value for name, value in os.environ.items() if not _OURS.fullmatch(name)}
        environment |= {"CUDA_VISIBLE_DEVICES": self._gpus, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
        with theirs:
            try:
                self._process = subprocess.Popen(
                    command,
                    bufsize=0,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for us, and what it starts can be killed with it
                )
            except OSError as error:
                self._channel.close()
                raise RewardError(f"{self._scorer}: {self._python} cannot be run: {error.strerror}") from None
        os.set_blocking(self._output, False)
        try:
            self._converse(b"", START_TIMEOUT)
        except EOFError:
            self._collect()
            raise RewardError(
                f"{self._scorer}: {self._python} ended before the model {self._model!r} was loaded: "
                f"{self._last_words()} (the scorer is installed there by: {self._install})"
            ) from None

    @property
    def _output(self) -> int:
        """The descriptor with what the process prints."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def _converse(self, line: bytes, seconds: float) -> dict[str, Any]:
        """Send a line and receive one. What is printed meanwhile is read: else the process would block on it.

        Raises:
            EOFError: the process is gone.
            TimeoutError: it has not replied in time.
        """
        deadline = time.monotonic() + seconds
        unsent, received = memoryview(line), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            selector.register(self._channel, selectors.EVENT_READ | (selectors.EVENT_WRITE if line else 0))
            while not received.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{self._scorer}: no reply in {seconds:g} s")
                for key, events in selector.select(left):
                    if key.fileobj is not self._channel:
                        if not self._listen():
                            selector.unregister(key.fileobj)
                        continue
                    try:
                        if events & selectors.EVENT_WRITE:
                            unsent = unsent[self._channel.send(unsent[: 1 << 20]) :]
                            if not unsent:
                                selector.modify(self._channel, selectors.EVENT_READ)
                        if events & selectors.EVENT_READ:
                            part = self._channel.recv(1 << 20)
                            if not part:
                                raise EOFError
                            received += part
                    except ConnectionError:
                        raise EOFError from None
        reply: dict[str, Any] = json.loads(received)
        return reply

    def _listen(self) -> bool:
        """Read some of what the process prints, and keep the end; False where there will be no more."""
        part = os.read(self._output, 1 << 16)
        self._printed = (self._printed + part)[-_TAIL:]
        return bool(part)

    def _collect(self) -> None:
        """What is left of a process that closed its channel."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):  # it is about to end
            self._process.wait(5)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):
                if not self._listen():
                    break
        status = self._process.returncode
        self._printed += f"\n(exit status {status})".encode() if status is not None else b""
        self.stop()

    def _last_words(self) -> str:
        lines = [" ".join(line.split()) for line in self._printed.decode("utf-8", "replace").splitlines()]
        return " | ".join([line[:300] for line in lines if line][-4:])

    def stop(self) -> None:
        """Kill the process and what it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        self._close(process)

    def forget(self) -> None:
        """Let go of a process that is our parent's. It ends when nobody holds the other end of its socket."""
        if self._process is not None:
            self._process.returncode = 0  # else Popen would look after it
            self._close(self._process)

    def _close(self, process: "subprocess.Popen[bytes]") -> None:
        self._channel.close()
        if process.stdout is not None:
            process.stdout.close()


_PROCESSES: dict[tuple[str, ...], ExternalProcess] = {}


def external_process(scorer: str, python: str, model: str, device: str | None, install: str) -> ExternalProcess:
    """The process for that scorer, interpreter, model and device: one for all rewards that name the same."""
    gpus = _visible_gpus(device)
    process = ExternalProcess(scorer, python, model, gpus, install)  # nothing runs yet
    return _PROCESSES.setdefault((scorer, python, model, gpus), process)


def _stop_all() -> None:
    for process in list(_PROCESSES.values()):
        process.stop()


def _forget_all() -> None:
    for process in _PROCESSES.values():
        process.forget()
    _PROCESSES.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_forget_all)


def _visible_gpus(device: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for a process that shall use `device`, which is counted as our own process counts."""
    if device is None:
        from accelerate import PartialState

        device = str(PartialState().device)
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return ""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return index or "0"
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if int(index or 0) >= len(names):
        raise ConfigError(f"device = {device!r}: no such GPU in CUDA_VISIBLE_DEVICES={listed}")
    return names[int(index or 0)]
