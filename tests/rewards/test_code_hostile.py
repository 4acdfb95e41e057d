"""Hostile programs: none is rewarded, all are contained, and the next score is right."""

import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rewards.sandboxes import descendants, make_runner
from trl_ext.rewards import make_reward, sandbox
from trl_ext.rewards.sandbox import LocalRunner

FORGERIES = {
    "exit": "import sys; sys.exit(0)",
    "exit_at_once": "import os; os._exit(0)",
    "exit_in_the_call": "import os\ndef f(x): os._exit(0)",
    "quit_in_the_call": "def f(x): raise SystemExit(0)",
    "interrupt": "def f(x): raise KeyboardInterrupt",
    "at_exit": "import atexit, os\natexit.register(os._exit, 0)",
    "equal_to_all": """
        class All(int):
            __eq__ = __le__ = __lt__ = __ge__ = __gt__ = lambda self, other: True
            __ne__ = lambda self, other: False
            __hash__ = int.__hash__
            __index__ = __int__ = lambda self: 2
        def f(x): return All(7)
    """,
    "object_equal_to_all": """
        class All:
            __eq__ = lambda self, other: True
            __class__ = int
            __int__ = __index__ = lambda self: 2
        def f(x): return All()
    """,
    "list_equal_to_all": """
        class All(list):
            __eq__ = lambda self, other: True
            __iter__ = lambda self: iter([2])
            __len__ = lambda self: 1
        def f(x): return All()
    """,
    "patched_json": "import json\njson.dumps = json.dump = lambda *_, **__: '2'\ndef f(x): return None",
    "patched_builtins": """
        import builtins
        builtins.type = builtins.issubclass = builtins.isinstance = builtins.map = lambda *_: True
        builtins.print = builtins.str = builtins.getattr = lambda *_, **__: 2
        def f(x): return None
    """,
    "patched_output": """
        import io, os, sys
        sys.stdout = sys.stderr = io.StringIO("2")
        print(2)
        os.write(1, b'"ready"\\n2\\n3\\n')
        os.write(2, b'"ready"\\n2\\n3\\n')
        def f(x): print("passed"); return None
    """,
    "all_files": """
        import os
        for file in range(1, 256):
            try:
                os.write(file, b'"ready"\\ntrue\\n"passed"\\n["object", "All"]\\n')
            except OSError:
                pass
        os._exit(0)
    """,
    "all_frames": """
        import gc, sys
        def f(x):
            frame, found = sys._getframe(), []
            while frame:
                found += [*frame.f_locals.items(), *frame.f_globals.items()]
                frame = frame.f_back
            found = str(found) + str([o for o in gc.get_objects() if isinstance(o, (str, list, dict))])
            return 31415 if "31415" in found else None
    """,
    "patched_encoder": """
        import sys
        module = sys.modules["__main__"]
        module.encode = lambda value: True
        def f(x): return None
    """,
    "closed_files": "import os\nos.closerange(0, 256)\ndef f(x): return 2",
    "deep": "def f(x):\n    value = []\n    for _ in range(10**6): value = [value]\n    return value",
    "endless_value": "def f(x):\n    value = []\n    value.append(value)\n    return value",
    "huge_value": "def f(x): return [x] * 10**8",
    "huge_number": "def f(x): return 1 << 10**8",
    "huge_text": "def f(x): return '\\0\\ud800\\U0001f642' * 10**7",
    "flood": "def f(x):\n    while True: print('\\0\\u202e' * 1000)",
    "recursion": "def f(x): return f(x)",
    "deep_recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "generator": "def f(x):\n    yield 2",
    "class": "def f(x): return type",
    "deaf": """
        import faulthandler, signal
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        def f(x):
            while True: pass
    """,
    "sleep": "import time\ndef f(x): time.sleep(1000)",
    "sleep_at_once": "import time\ntime.sleep(1000)",
    "no_watchdog": "import faulthandler, time\nfaulthandler.cancel_dump_traceback_later()\ntime.sleep(1000)",
    "fork_bomb": "import os\ndef f(x):\n    while True:\n        try: os.fork()\n        except OSError: pass",
    "fork": "import os\ndef f(x):\n    os.fork()\n    return None",
    "memory": "def f(x):\n    found = []\n    while True: found.append(bytes(10**6))",
    "daemon": """
        import os, time
        def f(x):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0: time.sleep(1000)
                os._exit(0)
    """,
    "kill_all": "import os\ndef f(x):\n    os.kill(-1, 9)\n    os.kill(0, 9)",
    "kill_parent": """
        import os
        for process in (os.getppid(), 1):
            try: os.kill(process, 9)
            except OSError: pass
        def f(x): return None
    """,
    "network": "import socket\ndef f(x): return socket.create_connection(('127.0.0.1', 1), 1)",
    "passwords": "def f(x): return open('/etc/shadow').read()",
    "surrogates": "x = '\ud800'\ndef f(x): return 2",
    "nulls": "\0" * 1000 + "\ndef f(x): return 2",
    "deep_source": "x = " + "(" * 100_000,
    "long_source": "x = [" + "1, " * 1_000_000,
}


@pytest.fixture(scope="module", params=["bubblewrap", "unsafe", "bare"])
def sandboxed(request: pytest.FixtureRequest) -> Iterator[LocalRunner]:
    runner = make_runner(request.param)
    yield runner
    runner.close()


def verdicts(hostile: str, good: str, target: Any) -> list[float | None]:
    """Of a hostile program, which has little time, and then of a good one in the same sandbox."""
    spec = {"type": "code", "runner": "tested", "memory_mb": 256, "concurrency": 1}
    return [
        make_reward({**spec, "timeout": seconds}).score(program, target)
        for program, seconds in ((hostile, 2.0), (good, 20.0))
    ]


@pytest.mark.parametrize("name", FORGERIES)
def test_a_hostile_program_is_not_rewarded_and_the_next_one_is(
    sandboxed: LocalRunner, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sandbox, "_RUNNERS", {"tested": sandboxed})
    program = textwrap.dedent(FORGERIES[name])
    good = "def f(x): return {1: 2, 2: 31415, 3: [1]}[x]"
    target = ["assert f(1) == 2", "assert f(2) == 31415", {"call": "f", "args": [3], "expected": [1]}]
    assert verdicts(program, good, target) == [0.0, 1.0]
    (interpreter,) = sandboxed._idle
    assert len(descendants(interpreter._process.pid)) <= 1  # the interpreter itself, where bwrap or unshare started it


@pytest.mark.parametrize("name", ["exit", "exit_at_once", "patched_output", "flood", "sleep_at_once", "fork_bomb"])
def test_a_hostile_program_that_is_run_on_input_is_not_rewarded(
    sandboxed: LocalRunner, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sandbox, "_RUNNERS", {"tested": sandboxed})
    program = textwrap.dedent(FORGERIES[name]) + "\ntry: f(1)\nexcept NameError: pass\n"
    assert verdicts(program, "print(int(input()) + 1)", {"inputs": ["1", "2"], "outputs": ["2", "3"]}) == [0.0, 1.0]
