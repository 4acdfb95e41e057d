import pytest

from trl_ext.errors import RewardError
from trl_ext.rewards import make_reward


def score(completion, target=None, prompt="", **spec):
    (value,) = make_reward(spec)([completion], prompts=[prompt], target=[target])
    return value


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("It was Ada Lovelace in 1843.", 1.0),
        ("It was Ada\u2019s 1,200 notes.", 1.0),
        ("It was Charles Babbage in 1843.", pytest.approx(1 / 3)),
        ("It was Byron, Byron, Byron and Ada.", 0.5),
        ("It was in 1844.", 0.0),
        ("Nothing. But no: Nobody\nKnows, I think, and I'm done.", None),
        ("1. nothing\n2. nobody", None),
        ("", None),
    ],
)
def test_entity_consistency_is_the_share_of_names_and_numbers_in_the_source(completion, expected):
    source = "In 1843 Ada Lovelace wrote 1200 notes."
    assert score(completion, prompt=source, type="entity_consistency") == expected
    assert score(completion, prompt="x", target=source, type="entity_consistency", source="target") == expected
    assert score(completion, target=["x", None, source], type="entity_consistency", source="target") == expected


def test_entity_consistency_without_a_source_is_none():
    assert score("It was Ada.", type="entity_consistency") is None
    assert score("It was Ada.", type="entity_consistency", source="target") is None
    with pytest.raises(RewardError, match="target"):
        make_reward({"type": "entity_consistency", "source": "target"})(["It was Ada."], prompts=["Ada"])
