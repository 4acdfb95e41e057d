"""The part of the sandbox that runs programs: one at a time, each in a process and in namespaces of its own.

`sandbox.py` starts this file as a script, inside bubblewrap or bare, with the number of a control socket and a JSON
configuration. It is trusted. It forks for each program, since a fork of a warm interpreter takes a fraction of the time
that a new one needs; the fork gives up all its rights before it runs anything, and is watched from here, where it
cannot reach. Nothing of trl-ext can be imported.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

WARM = """bisect collections copy dataclasses datetime decimal faulthandler fractions functools heapq itertools math
operator random re statistics string threading typing"""  # what programs import most: a fork has it already

NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x40000000  # mounts, cgroup, uts, ipc, net
NEW_USER, NEW_PIDS, THREAD = 0x10000000, 0x20000000, 0x00010000
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, RECURSIVE, PRIVATE = 0x1, 0x2, 0x4, 0x8, 0x4000, 0x40000
USERS = 3 << 30  # and the 65,535 after it: user ids that nobody gives out; sandbox.py maps the same
TICK = 0.02
FILES = 64 << 20  # bytes of a program's files, which are all in /tmp

_libc = ctypes.CDLL(None, use_errno=True)


def system(name: str, *arguments: Any) -> None:
    """A function of libc that Python lacks; OSError where it fails."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


class Sandbox:
    """What can be done here to hold programs, found out by trying, and the loop that runs them."""

    def __init__(self, control: socket.socket, namespaces: bool, programs: list[str]):
        self.control = control
        for name in WARM.split():
            importlib.import_module(name)
        self.compiled = {program: compile(program, "<prepared>", "exec", dont_inherit=True) for program in programs}
        system("prctl", 36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: a daemon, whose parent is gone, becomes our child
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        self.apart = namespaces and works(lambda: system("unshare", NEW_PIDS), set_apart)
        self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY) if self.apart else -1
        # Not where another user cannot read the standard library
        self.switches = works(lambda: switch_user(a_user()), lambda: open(os.__file__).close())
        # Root's processes are never held to a limit. Before Linux 5.14 all processes of the user who started us count:
        # such a limit would stop every program
        self.counts = (self.switches or self.apart) and self.may_fork(8) and not self.may_fork(1)
        self.call_filter = system_call_filter(self.apart, self.counts) if os.uname().machine in MACHINES else b""
        if not self.call_filter and not (self.apart and self.counts):
            raise SystemExit("without namespaces, or a count of processes, this needs x86-64 or ARM64")
        if not self.apart and os.geteuid() == 0 and not self.switches:
            # A program could end everything of this user with kill(-1)
            raise SystemExit("without namespaces this needs, as root, a Python in folders that others may enter")
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        """Run what the parent asks for until it is gone."""
        abilities = {"namespaces": self.apart, "switches_user": self.switches, "counts_processes": self.counts}
        self.control.send(json.dumps(abilities).encode())
        while True:
            message, files, _, _ = socket.recv_fds(self.control, 1 << 16, 3)
            if not message:
                return
            if message != b"stop":  # which may come for a program that has just ended
                reply = self.run(json.loads(message), files)
                self.control.send(json.dumps(reply).encode())

    def run(self, limits: dict[str, Any], files: list[int]) -> dict[str, Any]:
        """Run one program. None of its processes is left when this returns."""
        user = a_user()
        folder = "/tmp" if self.apart else tempfile.mkdtemp()
        if self.apart:
            system("unshare", NEW_PIDS)  # for children to come
        child = os.fork()
        if child == 0:
            try:
                self.start(limits, files, folder, user)
            finally:
                os._exit(125)
        if self.apart:
            system("setns", self.own_pids, NEW_PIDS)  # unshare works only from here
        for file in files:
            os.close(file)
        status, stopped = self.watch(child, limits)
        if not self.apart:  # a PID namespace ends with its first process
            self.end_leftovers(user)
            shutil.rmtree(folder, ignore_errors=True)
        return {"status": os.waitstatus_to_exitcode(status), "stopped": stopped}

    def watch(self, child: int, limits: dict[str, Any]) -> tuple[int, str | None]:
        """Wait for a program, or stop it. Also where the kernel does not count all it has: root's processes, memory."""
        deadline, stopped = time.monotonic() + limits["seconds"], None
        while True:
            signal.sigtimedwait([signal.SIGCHLD], TICK)
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status, stopped
            if select.select([self.control], [], [], 0)[0]:
                stopped = "output" if self.control.recv(16) else "parent"
            elif time.monotonic() > deadline:
                stopped = "time"
            else:
                tasks, memory = census(limits["processes"])
                if tasks > limits["processes"]:
                    stopped = "processes"
                elif memory > limits["memory"]:
                    stopped = "memory"
            if stopped:
                os.kill(child, signal.SIGKILL)
                return os.waitpid(child, 0)[1], stopped

    def end_leftovers(self, user: int) -> None:
        """End the processes of a user: all in one step, which no fork outruns. Who has no user of its own has none."""
        give_up = time.monotonic() + 10
        while self.switches and any(descendants()) and time.monotonic() < give_up:
            works(lambda: os.setresuid(user, user, user), lambda: os.kill(-1, signal.SIGKILL))
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass

    def start(self, limits: dict[str, Any], files: list[int], folder: str, user: int) -> None:
        """In the child: give up all rights, then be the program."""
        os.setsid()  # kill(0) would reach our parent, in its process group
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        program, stdin, stdout = files
        with open(program, "rb", closefd=False) as file:
            source = file.read()
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        os.closerange(3, 256)  # the control socket above all
        if self.apart:
            set_apart()
        elif self.switches:
            os.chown(folder, user, user)
        os.chdir(folder)
        if self.counts:
            self.limit_processes(limits["processes"] + 2, user)
        elif self.switches:
            switch_user(user)
        limit(resource.RLIMIT_CPU, int(limits["seconds"]) + 2)
        limit(resource.RLIMIT_AS, limits["memory"])
        limit(resource.RLIMIT_FSIZE, FILES)
        limit(resource.RLIMIT_NOFILE, 256)
        for nothing in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE):
            limit(nothing, 0)
        drop_rights(self.call_filter)
        become(self.compiled.get(source.decode("utf-8", "replace"), source))

    def limit_processes(self, count: int, user: int) -> None:
        limit(resource.RLIMIT_NPROC, count)
        if self.switches:
            switch_user(user)

    def may_fork(self, count: int) -> bool:
        """Whether a program that may be so many processes may start one."""
        user = a_user()
        return works(lambda: self.limit_processes(count, user), lambda: os.fork() or os._exit(0))


def a_user() -> int:
    return random.randrange(USERS + 1, USERS + 65_536)


def works(*actions: Callable[[], Any]) -> bool:
    """Whether none of the actions raises, tried in a process of its own."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            for action in actions:
                action()
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def set_apart() -> None:
    """Namespaces of its own, all files read-only but for an empty /tmp, and no /proc."""
    system("unshare", NEW_NAMESPACES)
    system("mount", None, b"/", None, RECURSIVE | PRIVATE, None)
    with contextlib.suppress(OSError):  # mount_setattr: since Linux 5.12; bubblewrap has done the same
        attributes = struct.pack("4Q", READ_ONLY, 0, 0, 0)
        system("syscall", 442, -100, b"/", 0x8000, attributes, len(attributes))
    options = f"size={FILES},nr_inodes=10000,mode=1777".encode()
    system("mount", b"tmpfs", b"/tmp", b"tmpfs", NO_SUID | NO_DEVICES, options)
    system("mount", b"tmpfs", b"/proc", b"tmpfs", READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC, b"mode=555")


def switch_user(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def descendants() -> Iterator[int]:
    """All processes below this one."""
    waiting = [os.getpid()]
    for process in waiting:  # which grows
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{task}/children") as file:
                    found = [int(child) for child in file.read().split()]
                waiting += found
                yield from found


def census(enough: int) -> tuple[int, int]:
    """How many threads all processes below this one have, and bytes in memory: of more than `enough`, not of all."""
    tasks = memory = 0
    for process in descendants():  # which grow
        if tasks > enough:
            break
        with contextlib.suppress(OSError, IndexError):
            tasks += len(os.listdir(f"/proc/{process}/task"))
            with open(f"/proc/{process}/statm") as file:
                memory += int(file.read().split()[1]) * resource.getpagesize()
    return tasks, memory


# System calls that no program needs, by their number on x86-64 and on ARM64: memory that no limit counts, other
# processes' memory, new namespaces, parts of the kernel with a history of holes. clone3 keeps its flags where a filter
# cannot see them; libc falls back on clone.
FORBIDDEN = {
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "unshare": (272, 97),
    "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "clone3": (435, 435),
}  # fmt: skip
# Those that namespaces would make harmless: signals to others, the network
FORBIDDEN_BARE = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "socket": (41, 198),
}  # fmt: skip
# New processes, but for threads, where the kernel does not count them: no watcher outruns a fork bomb on a busy machine
FORBIDDEN_UNCOUNTED = {"fork": (57, -1), "vfork": (58, -1)}
MACHINES = {"x86_64": 0, "aarch64": 1}


def system_call_filter(apart: bool, counts: bool) -> bytes:
    """A program for seccomp: it answers the forbidden calls with "no such call", and kills who calls in another ABI."""
    machine = MACHINES[os.uname().machine]
    abi, clone = (0xC000003E, 0xC00000B7)[machine], (56, 220)[machine]
    forbidden = {**FORBIDDEN, **({} if apart else FORBIDDEN_BARE), **({} if counts else FORBIDDEN_UNCOUNTED)}
    calls = [numbers[machine] for numbers in forbidden.values() if numbers[machine] >= 0]
    load, equal, at_least, has_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    # Instruction, how many to skip if true and if false, value. What is loaded: 0 the call, 4 the ABI, 16 clone's flags
    rules = [(load, 0, 0, 4), (equal, 1, 0, abi), (answer, 0, 0, 0x80000000), (load, 0, 0, 0)]
    flags = [(has_bit, 0, 1, NEW_USER)] if counts else [(has_bit, 1, 0, NEW_USER), (has_bit, 1, 0, THREAD)]
    rules += [(at_least, len(calls) + 2 + len(flags), 0, 0x40000000)]  # x32, where calls have other numbers
    rules += [(equal, len(calls) + 1 + len(flags) - i, 0, call) for i, call in enumerate(calls)]
    rules += [(equal, 0, 2 + len(flags), clone), (load, 0, 0, 16), *flags]
    rules += [(answer, 0, 0, 0x50000 | 38), (answer, 0, 0, 0x7FFF0000)]  # no such call; allowed
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)


def drop_rights(call_filter: bytes) -> None:
    """No capabilities, none to gain, and the filter."""
    system("prctl", 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG, as switching the user has reset it
    system("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    system("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    if call_filter:
        rules = ctypes.create_string_buffer(call_filter)
        pointer = struct.pack("HL", len(call_filter) // 8, ctypes.addressof(rules))
        system("prctl", 22, 2, pointer, 0, 0)  # PR_SET_SECCOMP


def become(program: Any) -> None:
    """Run the program as Python runs a script, and end the process as Python would."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["main.py"]
    status = 0
    try:
        exec(program if isinstance(program, types.CodeType) else compile(program, "main.py", "exec"), module.__dict__)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        status = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for its threads
        sys.stdout.flush()
    except BaseException:
        status = status or 1
    finally:
        os._exit(status & 0xFF)


if __name__ == "__main__":
    configuration = json.loads(sys.argv[2])
    with socket.socket(fileno=int(sys.argv[1])) as parent:
        sandbox = Sandbox(parent, configuration["namespaces"], configuration["programs"])
        os.dup2(0, 2)  # what goes wrong from here on, a program might have written
        sandbox.serve()
