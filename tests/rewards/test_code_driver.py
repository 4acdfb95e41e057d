import json
import math
from typing import Any

import pytest

from tests.rewards.sandboxes import score
from trl_ext.rewards import code
from trl_ext.rewards.code_driver import decode, encode
from trl_ext.rewards.sandbox import Limits, LocalRunner, Result


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**63),
        2**20_000,
        1.5,
        -0.0,
        math.inf,
        1 + 2j,
        "a\0\ud800🙂",
        b"\xff",
        [1, (2, {3}), {"k": [frozenset([4])], (1, 2): None}],
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) else "int",
)
def test_a_plain_value_survives_the_way(value: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value
    assert type(back) is type(value)


def test_what_a_program_prints_and_reads_is_apart_from_what_it_returns() -> None:
    program = """
        import sys
        print("hello", flush=True)
        sys.stdin.read()
        def f(x):
            print(3, file=sys.stderr, flush=True)
            print(3, flush=True)
            return (x, sys.stdin.read())
    """
    assert score(program, "assert f(1) == (1, '')") == 1.0


def test_the_driver_ends_a_call_that_hangs_and_not_the_sandbox() -> None:
    runner = LocalRunner(bubblewrap=False)
    request = {
        "code": "def f(): 10 ** 10 ** 9",
        "imports": "",
        "calls": [{"call": "1"}, {"call": "f()"}],
        "seconds": 2.0,
    }
    result = runner(code._DRIVER, json.dumps(request).encode(), Limits(120))
    assert result == Result(b'"ready"\n1\n', 1)
    runner.close()


def test_the_driver_is_no_part_of_the_module() -> None:
    assert code._DRIVER.count("def main") == 1
    assert (
        score(
            "def f():\n    return (__name__, sorted(n for n in globals() if n[0] != '_'))",
            "assert f() == ('solution', ['f'])",
        )
        == 1.0
    )
