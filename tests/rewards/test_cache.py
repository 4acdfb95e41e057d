import pytest

from trl_ext.errors import ConfigError
from trl_ext.rewards import make_reward, register_reward
from trl_ext.rewards.cache import ScoreCache


@pytest.fixture
def counting():
    """A type whose score is the length of the completion times `factor`; None for "none". And what it was asked."""
    calls = []

    @register_reward("counting")
    class Counting:
        def __init__(self, factor: float = 1.0):
            self.factor = factor

        def __call__(self, completions, target=None, image=None):
            calls.extend(completions)
            return [None if text == "none" else self.factor * len(text) for text in completions]

    return calls


def test_a_later_run_reads_what_an_earlier_one_scored(counting, tmp_path):
    spec = {"type": "counting", "cache": str(tmp_path / "scores")}
    assert make_reward(spec)(["a", "bb", "a"], target=["x", "x", "x"]) == [1.0, 2.0, 1.0]
    assert make_reward(spec)(["bb", "ccc"], target=["x", "x"]) == [2.0, 3.0]
    assert counting == ["a", "bb", "ccc"]


def test_other_columns_or_options_are_other_scores(counting, tmp_path):
    spec = {"type": "counting", "cache": str(tmp_path)}
    make_reward(spec)(["a"], target=["x"])
    assert make_reward({**spec, "factor": 3.0})(["a"], target=["x"]) == [3.0]
    make_reward(spec)(["a"], target=["y"])
    assert counting == ["a", "a", "a"]
    make_reward({**spec, "weight": 5.0, "name": "other", "postprocess": [{"type": "invert"}]})(["a"], target=["x"])
    assert counting == ["a", "a", "a"]  # what is done with a score does not change it


def test_none_and_rows_that_json_cannot_hold_are_not_kept(counting, tmp_path):
    reward = make_reward({"type": "counting", "cache": str(tmp_path)})
    for _ in range(2):
        assert reward(["none"]) == [None]
        assert reward(["a"], image=[object()]) == [1.0]
    assert counting == ["none", "a"] * 2


def test_any_text_and_number_of_rows_is_kept(tmp_path):
    cache = ScoreCache(str(tmp_path), "x")
    keys = [str(cache.key({"completions": text})) for text in ("\ud800", "\x00", "", *map(str, range(2000)))]
    cache.write({key: float(i) for i, key in enumerate(keys)})
    assert ScoreCache(str(tmp_path), "x").read(keys) == {key: float(i) for i, key in enumerate(keys)}
    assert cache.read(["unknown"]) == {}


def test_a_reward_that_compares_completions_cannot_be_cached(tmp_path):
    with pytest.raises(ConfigError, match=r"spec.cache: 'diversity' compares the completions of a batch"):
        make_reward({"type": "diversity", "cache": str(tmp_path)})
