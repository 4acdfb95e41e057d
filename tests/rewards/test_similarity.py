import pytest
from rapidfuzz.distance import Levenshtein

from trl_ext.rewards import make_reward

TYPES = ["exact_match", "jaccard", "token_f1", "levenshtein"]
HOSTILE = ["", "   ", "\x00", "\ud800", "a" * 1_000_000, "مرحبا بالعالم", "🙂" * 50, "\u202e abc"]


@pytest.mark.parametrize("type_", TYPES)
def test_gold_is_1_wrong_and_empty_are_0_and_no_reference_is_none(type_):
    reward = make_reward({"type": type_})
    assert reward(["the cat sat", "xyz", "", "cat"], target=["the cat sat", "ab", "dog", None]) == [1.0, 0.0, 0.0, None]
    assert reward.score("", "") == 1.0


@pytest.mark.parametrize("type_", TYPES)
def test_the_best_of_several_references_counts(type_):
    reward = make_reward({"type": type_})
    assert reward(["dog"], target=[["cat", "dog", None]]) == [1.0]
    assert reward(["dog"], target=[[]]) == [None]


@pytest.mark.parametrize("type_", TYPES)
def test_hostile_texts_have_a_score_within_the_range(type_):
    scores = make_reward({"type": type_})(HOSTILE, target=["مرحبا"] * len(HOSTILE))
    assert all(0.0 <= score <= 1.0 for score in scores)


def test_known_values():
    assert make_reward({"type": "jaccard"}).score("the cat sat", "the cat ran") == 0.5
    assert make_reward({"type": "token_f1"}).score("a a b", "a b b") == pytest.approx(2 / 3)
    assert make_reward({"type": "levenshtein"}).score("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert Levenshtein.distance("kitten", "sitting") == 3


def test_options_fold_case_and_punctuation():
    assert make_reward({"type": "exact_match"}).score(" The cat! ", "cat") == 0.0
    assert make_reward({"type": "exact_match", "normalize": True}).score(" The cat! ", "cat") == 1.0
    assert make_reward({"type": "levenshtein", "lowercase": True}).score("ABC", "abc") == 1.0
    assert make_reward({"type": "levenshtein"}).score("ABC", "abc") == 0.0
