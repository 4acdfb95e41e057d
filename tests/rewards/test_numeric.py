import math

import pytest

from tests.rewards.verifying import HOSTILE, each
from trl_ext.errors import ConfigError
from trl_ext.rewards import make_reward, numeric

# numeric


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is 1,234.5", "1234.5"),
        ("so -$3", "-3"),
        ("so $-3", "-3"),
        ("12%", "12"),
        ("-3/4", "-0.75"),
        (r"\frac{3}{4}", "0.75"),
        (r"\frac{-3}{4}", "-0.75"),
        ("1.5E-3", "0.0015"),
        (r"2.5 \times 10^{3}", "2500"),
        ("x=\u22125.", "-5"),
        ("10-5", "5"),
        (".5", "0.5"),
        ("1, 2, 3", "3"),
        ("1{,}234", "1234"),
        ("\u0664\u0662", "42"),
        (r"\$18.00.", "18.00"),
    ],
)
def test_numeric_reads_the_last_number(text: str, number: str) -> None:
    assert numeric.last_number(text) == numeric.decimal.Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "inf", "nan", "-infinity", "1/0", "1e99999999999999999999999"])
def test_numeric_finds_no_number(text: str) -> None:
    assert numeric.last_number(text) is None


def test_numeric_scores_gold_wrong_empty_and_unscorable() -> None:
    completions = ["so 18", "so 19", "", "18", "18", "#### 18"]
    target = ["#### 18", "18", "18", None, "no number", ["17", "18"]]
    scores = make_reward({"type": "numeric"})(completions, target=target)
    assert scores == [1.0, 0.0, 0.0, None, None, 1.0]
    assert each({"type": "numeric"}, completions, target) == scores


def test_numeric_tolerances_are_of_the_reference_and_absolute() -> None:
    assert make_reward({"type": "numeric"})(["1000000.9", "1000001.1"], target=[1000000, 1000000]) == [1.0, 0.0]
    assert make_reward({"type": "numeric", "tolerance": 0.1})(["110", "110.1"], target=["100"] * 2) == [1.0, 0.0]
    assert make_reward({"type": "numeric", "absolute": 0.5})(["0.5", "0.51"], target=["0"] * 2) == [1.0, 0.0]
    assert make_reward({"type": "numeric", "tolerance": 0.0})(["1" * 60 + "2"], target=["1" * 60 + "3"]) == [0.0]


def test_numeric_agrees_with_isclose_of_the_standard_library() -> None:
    for a, b in [(1.0, 1.0000009), (1.0, 1.0000011), (-3.5, -3.5), (1e-9, 2e-9), (1e300, 1.0000001e300)]:
        expected = float(abs(a - b) <= 1e-6 * abs(b))
        assert make_reward({"type": "numeric"})([repr(a)], target=[repr(b)]) == [expected]


@pytest.mark.parametrize("unit", ["1", "1,", "1 ", "1/", "1,111", "-", "$", "1e", "\\frac{1", "\\frac{", "."])
def test_numeric_reads_a_flood_to_its_end(unit: str) -> None:
    text = unit * (10**6 // len(unit))
    assert make_reward({"type": "numeric"}).score(text, "42") == 0.0


def test_numeric_survives_huge_numbers() -> None:
    huge = ["1e999999", "-1e-999999", "9" * 100_000, "1e" + "9" * 100_000, "1/1e999999"]
    scores = make_reward({"type": "numeric"})(huge + huge, target=["42"] * 5 + huge)
    assert scores[:5] == [0.0] * 5
    assert scores[5:] == [1.0, 1.0, 1.0, None, 1.0]


@pytest.mark.parametrize("option", [{"tolerance": -1.0}, {"absolute": -0.1}, {"tolerance": math.inf}])
def test_numeric_refuses_bad_options(option: dict) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(option))} = "):
        make_reward({"type": "numeric", **option})


def test_hostile_texts_are_scored() -> None:
    reward = make_reward({"type": "numeric"})
    assert set(reward(HOSTILE, target=["43"] * len(HOSTILE))) == {0.0}
    assert all(score is None or math.isfinite(score) for score in reward(["43"] * len(HOSTILE), target=HOSTILE))
