import json
import math
import textwrap
import time
from typing import Any

import pytest

from tests.rewards.sandboxes import ADD, SPEC, score
from trl_ext.rewards import make_reward, sandbox
from trl_ext.rewards.code_tests import parse_tests
from trl_ext.rewards.sandbox import Result


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ("assert add(1, 2) == 3", "4"),
        ("assert add(1, 2) == 3\nassert add(-1, 1) == 0", "3"),
        (["assert add(1, 2) == 3", "assert add(-1, 1) == 0"], "0"),
        ("assert add(1, 2) == 3 and add(0, 0) == 0, 'it adds'", "3"),
        ("assert 3 == add(1, 2)", "4"),
        ("assert add(1, 2) != 4", "4"),
        ("assert add(1, 2) > 2", "2"),
        ("assert add(1, 2) >= 3", "2"),
        ("assert 2 < add(1, 2)", "1"),
        ("assert add(1, 2) in (3, 4)", "5"),
        ("assert add(1, 2) not in [4, 5]", "4"),
        ("assert add(1, 2)", "0"),
        ("assert add([1], [2])", "[]"),
        ("assert not add(-1, 1)", "1"),
        ("assert add([1], [2]) == [1, 2]", "[2, 1]"),
        ("assert set(add([1], [2, 2])) == set([2, 1])", "[1]"),
        ("assert sorted(add([1], [2]), key=lambda x: -x) == sorted([1, 2], reverse=True)", "[1]"),
        ("assert abs(add(0.1, 0.2) - 0.3) < 1e-9", "0.31"),
        ("assert abs(0.3 - add(0.1, 0.2)) <= 1e-9", "0.31"),
        ("import math\nassert math.isclose(add(0.1, 0.2), 0.3)", "0.31"),
        ("from math import isclose\nassert isclose(0.31, add(0.1, 0.2), abs_tol=0.1)", "0.5"),
        ("import math\nassert add(math.pi, 0) == math.pi", "3.14"),
        (["from collections import Counter", "assert add(Counter('a'), Counter('b')) == Counter('ab')"], "{'a': 1}"),
        ("assert round(add(1.26, 0), 1) == 1.3", "1.2"),
        ("assert add(True, False) == 1", "2"),
        ("assert add('a\\u0000', '\\ud800') == 'a\\x00\\ud800'", "'a'"),
        ("assert add(1j, 2**100) == 2**100 + 1j", "1j"),
        ({"call": "add", "args": [1, 2], "expected": 3}, "4"),
        ({"call": "add", "args": [1], "kwargs": {"b": 2}, "expected": 3}, "'3'"),
        ({"call": "add", "args": [[1], [2]], "expected": [1, 2]}, "[1]"),
        ([{"call": "add", "args": [1, 2], "kwargs": None, "expected": 3, "stdin": None, "stdout": None}], "None"),
        ([{"call": "add", "args": [1, 2], "expected": 3}, "assert add(2, 2) == 4"], "3"),
    ],
)
def test_a_right_program_scores_one_and_a_wrong_one_zero(target: Any, wrong: str) -> None:
    completions = [ADD, f"def add(a, b):\n    return {wrong}\n"]
    for given in [target] if isinstance(target, str) else [target, json.dumps(target)]:
        assert make_reward(SPEC)(completions, target=[given] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    "target",
    [
        {"stdin": "1 2\n3 4\n", "stdout": "3\n7\n"},
        {"input": "1 2", "output": "  3  \n\n"},
        {"inputs": ["1 2", "3 4\n5 6"], "outputs": ["3", "7\n11"]},
        {"input": ["1 2"], "output": ["3"], "call": None, "args": None, "expected": None},
        [{"stdin": "1 2", "stdout": "3"}, {"stdin": "", "stdout": ""}],
    ],
)
def test_a_program_is_run_on_each_input(target: Any) -> None:
    right = "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))\n"
    main = f"def main():\n{textwrap.indent(right, '    ')}\nif __name__ == '__main__':\n    main()\n"
    wrong = right.replace("sum(", "max(")
    fails = right + "1 / 0"
    for given in (target, json.dumps(target)):
        assert make_reward(SPEC)([right, main, wrong, fails], target=[given] * 4) == [1.0, 1.0, 0.0, 0.0]


def test_what_a_call_returns_is_compared_as_json_holds_it() -> None:
    program = "def f(x):\n    return {'t': (1, (2,)), 'd': {1: True, None: 1.5}, 's': {1}}[x]\n"
    cases = [
        ("t", [1, [2]], 1.0),
        ("t", (1, [2]), 1.0),
        ("t", [1, [3]], 0.0),
        ("d", {"1": True, "null": 1.5}, 1.0),
        ("d", {"1": True}, 0.0),
        ("s", [1], 0.0),
    ]
    for name, expected, verdict in cases:
        assert score(program, {"call": "f", "args": [name], "expected": expected}) == verdict


def test_assert_lines_are_compared_as_python_compares() -> None:
    assert score("def f():\n    return (1, 2)", "assert f() == [1, 2]") == 0.0
    assert score("def f():\n    return (1, 2)", "assert f() == (1, 2)") == 1.0
    assert score("def f():\n    return 0.1 + 0.2", "assert f() == 0.3") == 0.0
    assert score("def f():\n    return True", "assert f() is True") == 1.0
    assert score("def f():\n    return 1", "assert f() is True") == 0.0
    assert score("def f():\n    return None", "assert f() is None") == 1.0
    assert score("def f():\n    return float('nan')", {"call": "f", "expected": math.nan}) == 0.0


def test_methods_of_a_class_can_be_called() -> None:
    program = "class Solution:\n    def twice(self, x):\n        return 2 * x\n"
    assert score(program, "assert Solution().twice(2) == 4") == 1.0
    assert score(program, {"call": "Solution().twice", "args": [2], "expected": 4}) == 1.0
    assert score(program, {"call": "Solution().twice", "args": [2], "expected": 5}) == 0.0


def test_a_subclass_counts_as_what_it_inherits_from() -> None:
    program = """
        import collections, enum
        Point = collections.namedtuple("Point", "x y")
        Colour = enum.IntEnum("Colour", "RED")
        def f(kind):
            return {"counter": collections.Counter("aab"), "point": Point(1, 2), "enum": Colour.RED}[kind]
    """
    target = ["assert f('counter') == {'a': 2, 'b': 1}", "assert f('point') == (1, 2)", "assert f('enum') == 1"]
    assert score(program, target) == 1.0


MALFORMED: list[Any] = [
    None,
    "",
    " ",
    [],
    {},
    [None],
    3,
    "text",
    "add(1, 2) == 3",
    "assert",
    "assert True",
    "assert 1 == 1",
    "assert (add(1, 2) == 3, 'a tuple is true')",
    "assert add(1, 2) == add(2, 1)",
    "assert add(1, 2) == 3 or add(1, 2) == 4",
    "assert 2 < add(1, 2) < 4",
    "assert (add(1, 2) == 3) == True",
    "assert all(add(i, 1) == i + 1 for i in range(3))",
    "assert isinstance(add(1, 2), int)",
    "assert isinstance(add(1, 2), int) == True",
    "assert add(1, 2).__eq__(3)",
    "assert (3 if add(1, 2) == 3 else 4) == 3",
    "assert add(1, 2) is 3",
    "assert add(1, 2) == ...",
    "assert add(1, 2) == 1 / 0",
    "assert add(1, 2) == print",
    "assert add(1, 2) == (x for x in [])",
    "import no_such_module\nassert add(1, 2) == 3",
    "from math import *\nassert add(1, 2) == pi",
    "x = 3\nassert add(1, 2) == x",
    "for i in range(3):\n    assert add(i, 1) == i + 1",
    "def check(f):\n    assert f(1, 2) == 3\ncheck(add)",
    ["assert add(1, 2) == 3", "assert"],
    '[{"call": "add", "args": [1, 2], "expected": 3}',
    {"call": "add", "args": [1, 2]},
    {"call": "add", "args": 1, "expected": 3},
    {"call": "add", "kwargs": [1], "expected": 3},
    {"call": "add(1, 2) or print", "expected": 3},
    {"call": "add", "args": [1, 2], "expected": 3, "more": 1},
    {"call": "add", "args": [object()], "expected": 3},
    {"call": "add", "args": [1, 2], "expected": object()},
    {"stdin": "1"},
    {"stdout": "1"},
    {"stdin": 1, "stdout": "1"},
    {"stdin": "1", "input": "1", "stdout": "1"},
    {"inputs": ["1", "2"], "outputs": ["1"]},
    {"inputs": [[1]], "outputs": [1], "fn_name": "add"},
    "[" * 100_000,
    "assert " + "(" * 10_000,
    "assert add(1, 2) == " + "-" * 100_000 + "1",
    "\ud800",
    "\0",
]


@pytest.mark.parametrize("target", MALFORMED, ids=lambda target: repr(target)[:40])
def test_tests_that_cannot_be_used_are_not_scored(target: Any) -> None:
    assert make_reward(SPEC)([ADD, "", "rubbish"], target=[target] * 3) == [None] * 3


HOSTILE_ANSWERS = [
    b"3.0",
    b"NaN",
    b"[]",
    b"{}",
    b'{"list": 3}',
    b'["list"',
    b'["int"]',
    b'["int", "x"]',
    b'["float", 3]',
    b'["dict", 1]',
    b'["dict", ["list"], 1]',
    b'["set", ["list"]]',
    b'["object", "int"]',
    b'["error", "3"]',
    b'["unknown", 3]',
    b'[["list"], 3]',
    b"[" * 100_000,
    b'["list", ' * 50_000 + b"3" + b"]" * 50_000,
    b"9" * 10_000,
    b'["int", "' + b"f" * 1_000_000 + b'"]',
    b"\xff\xfe",
    b"",
]


@pytest.mark.parametrize("answer", HOSTILE_ANSWERS, ids=lambda answer: answer[:20].decode("latin-1"))
@pytest.mark.parametrize("line", ["f() == 3", "f() == [3]", "f() in [3]", "f()", "not f()", "f() < 3", "f() != 3"])
def test_a_forged_answer_that_is_no_value_fails(monkeypatch: pytest.MonkeyPatch, answer: bytes, line: str) -> None:
    is_value = (answer[:6] == b'["int"' and len(answer) > 100) or (line == "f()" and answer[2:5] in (b"dic", b"set"))
    if is_value and line in ("f()", "f() != 3"):
        pytest.skip("to this line it is a value")
    result = Result(b'"ready"\n' + answer + b"\n", 0)
    monkeypatch.setattr(sandbox, "_RUNNERS", {"forger": lambda program, stdin, limits: result})
    assert make_reward({"type": "code", "runner": "forger"}).score("x", f"assert {line}") == 0.0


def test_a_set_made_to_collide_costs_no_time() -> None:
    """Multiples of 2**61 - 1 share a hash: a set of many takes the square of their number of steps."""
    numbers = [i * (2**61 - 1) for i in range(1, 50_000)]
    (equal,) = parse_tests("assert f() == {1, 2, 3}").calls  # type: ignore[union-attr]
    (member,) = parse_tests("assert f() in [{1, 2, 3}]").calls  # type: ignore[union-attr]
    start = time.process_time()
    assert not equal.passes(["set", *numbers])
    assert not member.passes(["set", *numbers])
    assert time.process_time() - start < 5  # it would take minutes
