import pytest

from trl_ext.rewards import make_reward
from trl_ext.rewards.composites import combine

PARTS = [[1.0, 0.5, None, None], [0.0, 0.5, 0.25, None]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("weighted_sum", [0.75, 0.5, 0.0625, None]),
        ("product", [0.0, 0.25, 0.25, None]),
        ("minimum", [0.0, 0.5, 0.25, None]),
    ],
)
def test_hand_computed_cases(kind, expected):
    assert combine(kind, PARTS, [3.0, 1.0], {}) == expected


def test_a_reward_counts_only_where_another_passed():
    options = {"threshold": 0.5, "otherwise": -1.0}
    assert combine("conditioned", PARTS, [1.0, 1.0], options) == [-1.0, 0.5, -1.0, None]
    assert combine("conditioned", [[None], [1.0]], [1.0, 1.0], options) == [None]


def test_weights_that_sum_to_0_are_not_divided():
    assert combine("weighted_sum", [[1.0], [0.5]], [1.0, -1.0], {}) == [0.5]


def test_composites_nest():
    spec = {
        "type": "conditioned",
        "reward": {"type": "minimum", "components": [{"type": "jaccard"}, {"type": "token_f1"}]},
        "on": {"type": "exact_match", "extract": {"type": "regex", "pattern": "^a"}, "target": "first"},
        "threshold": 1.0,
    }
    reward = make_reward(spec)
    assert reward(["a b", "b a"], target=["a", "a"], first=["a", "a"]) == [pytest.approx(0.5), 0.0]
    assert {part.__name__ for part in reward.children} == {"minimum", "exact_match"}
