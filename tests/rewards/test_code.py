import json
import math
import pickle
import time
from typing import Any

import pytest

from tests.rewards.sandboxes import ADD, PARTIAL, SPEC, score
from tests.rewards.verifying import HOSTILE, each
from trl_ext.errors import ConfigError
from trl_ext.rewards import make_reward, sandbox
from trl_ext.rewards.code import find_program
from trl_ext.rewards.sandbox import Limits, Result


def test_an_empty_completion_scores_zero() -> None:
    assert make_reward(SPEC)(["", " \n", "```python\n\n```"], target=["assert add(1, 2) == 3"] * 3) == [0.0] * 3


@pytest.mark.parametrize(
    "text",
    [
        ADD,
        f"```python\n{ADD}```",
        f"Here:\n\n  ```py\n{ADD}\n```\nas asked",
        f"```python\nwrong\n```\nno:\n```Python\n{ADD}```\nwith output\n```\n3\n```\n```bash\nrm -rf /\n```",
        f"```\nwrong\n```\n```\n{ADD}```\n",
        f"I think\n```python\n{ADD}",
        f"{ADD}```\nThis adds.",
        f"```\n{ADD}",
        f"~~~\n```python title=a.py\n{ADD}```",
    ],
)
def test_the_program_is_found(text: str) -> None:
    assert find_program(text).strip() == ADD.strip()
    assert score(text, "assert add(1, 2) == 3") == 1.0


def test_finding_the_program_takes_linear_time() -> None:
    start = time.process_time()
    for text in ("```python\n" * 100_000, "```" * 300_000, " " * 1_000_000, "\n" * 1_000_000, "` ``\n" * 200_000):
        find_program(text)
    assert time.process_time() - start < 60  # a bound on quadratic time, not a timing


def test_partial_is_the_share_of_tests_that_pass() -> None:
    target = ["assert add(1, 2) == 3", "assert add(2, 2) == 5", {"call": "add", "args": [0, 1], "expected": 1}]
    assert make_reward(PARTIAL).score(ADD, target) == pytest.approx(2 / 3)
    assert make_reward(SPEC).score(ADD, target) == 0.0
    runs = {"inputs": ["1", "2", "3", "4"], "outputs": ["1", "2", "3", "0"]}
    assert make_reward(PARTIAL).score("print(input())", runs) == 0.75
    assert make_reward(SPEC).score("print(input())", runs) == 0.0


@pytest.mark.parametrize(
    "bad", ["while True: pass", "__import__('os')._exit(0)", "return 'x' * 10**7", "raise SystemExit", "return f(x)"]
)
def test_a_test_that_hangs_or_kills_the_program_costs_no_more_than_itself(bad: str) -> None:
    program = f"def f(x):\n    if x == 1:\n        {bad}\n    return x\n"
    target = [f"assert f({i}) == {i}" for i in range(4)]
    assert make_reward({**PARTIAL, "timeout": 3.0}).score(program, target) == 0.75  # the three others have that time
    assert make_reward({**SPEC, "timeout": 0.5}).score(program, target) == 0.0


def test_batch_equals_one_at_a_time() -> None:
    completions = [
        ADD,
        f"```python\n{ADD}```",
        "def add(a, b): return a",
        "",
        "print(3)",
        ADD,
        "import os; os._exit(0)",
    ]
    target = [
        "assert add(1, 2) == 3",
        {"stdin": "", "stdout": ""},
        ["assert add(1, 2) == 3", "assert add(1, 0) == 1"],
        "assert add(1, 2) == 3",
        {"stdin": "", "stdout": "3"},
        "no tests",
        "assert add(1, 2) == 3",
    ]
    expected = [1.0, 1.0, 0.5, 0.0, 1.0, None, 0.0]
    assert make_reward(PARTIAL)(completions, target=target) == expected
    assert make_reward({**PARTIAL, "concurrency": 1})(completions, target=target) == expected
    assert each(PARTIAL, completions, target) == expected


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runner "counted", which runs nothing, and the programs that it was given."""
    programs: list[str] = []

    def run(program: str, stdin: bytes, limits: Limits) -> Result:
        programs.append(json.loads(stdin)["code"] if stdin.startswith(b"{") else program)
        return Result(b'"ready"\n3\n', 0)

    monkeypatch.setattr(sandbox, "_RUNNERS", {"counted": run})
    return programs


def test_the_same_program_with_the_same_tests_runs_once(counted: list[str]) -> None:
    completions = [ADD, f"```python\n{ADD}```", ADD, ADD + "#"]
    reward = make_reward({"type": "code", "runner": "counted"})
    assert reward(completions, target=["assert add(1, 2) == 3"] * 4) == [1.0] * 4
    assert sorted(counted) == [ADD.strip(), ADD + "#"]


def test_the_sandbox_gets_the_limits_and_not_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, bytes, Limits]] = []

    def run(program: str, stdin: bytes, limits: Limits) -> Result:
        given.append((program, stdin, limits))
        return Result(b'"ready"\n', 0)

    monkeypatch.setattr(sandbox, "_RUNNERS", {"spy": run})
    options = {"timeout": 2.0, "memory_mb": 100, "max_output": 77, "max_processes": 5}
    target = [
        "assert add(1, 2) == 31415",
        {"call": "add", "args": [1, 2], "expected": 31415},
        "assert abs(add(1, 2) - 31415) < 1",
        "assert add(1, 2) != 31415, 'not 31415'",
        "import math\nassert math.isclose(31415, add(1, 2))",
    ]
    make_reward({"type": "code", "runner": "spy", **options})([ADD], target=[target])
    (_, imports, _), (program, stdin, limits) = given
    assert b"import math" in imports
    assert "31415" not in program
    assert b"31415" not in stdin
    assert limits == Limits(2.0 * 6 + 1, 100 << 20, 77, 5)


def test_a_sandbox_that_breaks_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Result(b"", 1, "sandbox")
    monkeypatch.setattr(sandbox, "_RUNNERS", {"broken": lambda program, stdin, limits: broken})
    reward = make_reward({"type": "code", "runner": "broken"})
    targets = ["assert add(1, 2) == 3", {"stdin": "", "stdout": ""}, "assert add(1, 2) == int(3)"]
    assert reward([ADD] * 3, target=targets) == [None] * 3


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", 0.0),
        ("timeout", math.inf),
        ("timeout", math.nan),
        ("memory_mb", 10),
        ("max_output", 0),
        ("max_processes", 1),
        ("concurrency", 0),
        ("runner", "nowhere"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{option} = "):
        make_reward({**SPEC, option: value})


def test_it_pickles() -> None:
    reward = pickle.loads(pickle.dumps(make_reward(PARTIAL)))
    assert reward.score(ADD, ["assert add(1, 2) == 3", "assert add(1, 2) == 4"]) == 0.5


def test_hostile_texts_score_zero_as_programs_and_nothing_as_tests() -> None:
    targets = ["assert f(1) == 2", {"stdin": "", "stdout": "2"}]
    for target in targets:
        assert make_reward(SPEC)(HOSTILE, target=[target] * len(HOSTILE)) == [0.0] * len(HOSTILE)
    assert make_reward(SPEC)([ADD] * len(HOSTILE), target=HOSTILE) == [None] * len(HOSTILE)
