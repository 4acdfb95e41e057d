import math
import pickle
import sys

import pytest

from trl_ext.errors import ConfigError, MissingExtraError, RewardError
from trl_ext.rewards import make_reward, make_reward_funcs, register_reward

SUM = {
    "type": "weighted_sum",
    "components": [
        {"type": "exact_match", "target": "answer", "weight": 3.0},
        {"type": "token_f1", "target": "answer", "weight": 1.0, "name": "overlap"},
        {"type": "jaccard", "target": "answer", "weight": 0.0},
    ],
}


@pytest.fixture
def failing():
    """A reward type that raises on "boom", scores its other completions by their length, and counts its calls."""
    calls = []

    def score(completions):
        calls.append(list(completions))
        if "boom" in completions:
            raise ZeroDivisionError("no")
        return [{"inf": math.inf, "nan": math.nan}.get(text, float(len(text))) for text in completions]

    register_reward("failing")(score)
    return calls


def test_one_callable_equals_trls_weighted_sum_of_the_functions():
    """TRL: nansum over functions of weight * reward."""
    completions, answer = ["a b", "a", "x"], ["a b", "a b", None]
    funcs, weights = make_reward_funcs(SUM)
    assert weights == [0.75, 0.25, 0.0]
    scores = [func(completions, prompts=[""] * 3, answer=answer) for func in funcs]
    for row, together in enumerate(make_reward(SUM)(completions, prompts=[""] * 3, answer=answer)):
        parts = [(w, s[row]) for w, s in zip(weights, scores, strict=True) if s[row] is not None]
        assert together == (pytest.approx(sum(w * s for w, s in parts)) if parts else None)
    assert make_reward(SUM)(["x"], answer=[None]) == [None]


def test_functions_have_unique_names():
    same = {"type": "weighted_sum", "components": [{"type": "jaccard"}, {"type": "jaccard"}, {"type": "exact_match"}]}
    assert [func.__name__ for func in make_reward_funcs(same)[0]] == ["jaccard", "jaccard_2", "exact_match"]
    assert [func.__name__ for func in make_reward_funcs(SUM)[0]] == ["exact_match", "overlap", "jaccard"]


def test_a_sum_with_a_postprocess_cannot_be_split():
    (reward,), weights = make_reward_funcs({**SUM, "postprocess": [{"type": "clip"}]})
    assert (reward.type, weights) == ("weighted_sum", [1.0])
    assert make_reward_funcs({"type": "jaccard"})[1] == [1.0]


def test_components_of_a_composite_are_logged_also_those_of_weight_0():
    logged = {}
    make_reward(SUM)(["a b", "c"], answer=["a b", "a b"], log_metric=logged.__setitem__)
    assert logged == {f"reward_components/{name}": 0.5 for name in ("exact_match", "overlap", "jaccard")}


def test_a_batch_equals_one_at_a_time():
    completions, answer = ["a b", "b", "", "a b"], ["a b", "a b", "a b", "c"]
    reward = make_reward(SUM)
    one_by_one = [reward.score(c, a) for c, a in zip(completions, answer, strict=True)]
    assert reward(completions, answer=answer) == one_by_one


def test_score_takes_columns_from_the_item_and_gives_nan_where_it_cannot():
    reward = make_reward(SUM)
    assert reward.score("a", "ignored", prompt="p", item={"answer": "a"}) == 1.0
    assert math.isnan(reward.score("a", None))


def test_when_routes_rows_by_a_column():
    reward = make_reward({"type": "exact_match", "when": {"kind": ["math", "code"]}})
    assert reward(["a", "a", "a"], target=["a", "b", "a"], kind=["math", "code", "chat"]) == [1.0, 0.0, None]
    with pytest.raises(RewardError, match=r"'when' needs column 'kind', the batch has \['target'\]"):
        reward(["a"], target=["a"])


def test_a_missing_column_is_named_with_the_remedy():
    with pytest.raises(RewardError, match=r"needs column 'target' .* the batch has \['answer'\]: name one"):
        make_reward({"type": "exact_match"})(["a"], answer=["a"])


def test_several_columns_are_several_references():
    reward = make_reward({"type": "exact_match", "target": ["first", "second"]})
    assert reward(["a", "b", "c"], first=["a", "a", None], second=["b", "b", None]) == [1.0, 1.0, None]


def test_extract_scores_the_part_that_is_found():
    reward = make_reward({"type": "exact_match", "extract": "boxed"})
    assert reward([r"so \boxed{4}", "4"], target=["4", "4"]) == [1.0, 0.0]


def test_repeated_rows_are_scored_once(failing):
    assert make_reward({"type": "failing"})(["aa", "b", "aa", "aa"]) == [2.0, 1.0, 2.0, 2.0]
    assert failing == [["aa", "b"]]


def test_a_score_that_is_not_finite_is_none(failing):
    assert make_reward({"type": "failing"})(["inf", "a", "nan"]) == [None, 1.0, None]


def test_an_exception_ends_the_run_or_counts_against_a_budget(failing):
    with pytest.raises(RewardError, match="failing cannot score a batch: ZeroDivisionError: no"):
        make_reward({"type": "failing"})(["boom"])
    reward = make_reward({"type": "failing", "on_error": "none", "max_errors": 2})
    assert reward(["a", "boom"]) == reward(["boom", "b"]) == [None, None]
    assert reward(["a", "b"]) == [1.0, 1.0]
    with pytest.raises(RewardError, match=r"batch 3 of at most 2 that may raise"):
        reward(["boom"])


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(
        MissingExtraError, match=r"levenshtein needs rapidfuzz.distance: pip install 'trl-ext\[rewards\]'"
    ):
        make_reward({"type": "levenshtein"}).score("a", "b")


def test_a_wrong_number_of_scores_is_refused(failing):
    register_reward("short")(lambda completions: [1.0])
    with pytest.raises(RewardError, match="short returned 1 scores for 2 completions"):
        make_reward({"type": "short"})(["a", "b"])


def test_rewards_pickle_with_their_names_and_averages():
    spec = {"type": "weighted_sum", "components": [{"type": "jaccard"}, {"type": "jaccard",
            "postprocess": [{"type": "ema_normalize"}]}]}  # fmt: skip
    for reward in (make_reward(spec), *make_reward_funcs(spec)[0]):
        reward(["a b", "a"], target=["a", "a"])
        copy = pickle.loads(pickle.dumps(reward))
        assert copy.__name__ == reward.__name__
        assert copy.state_dict() == reward.state_dict()
        assert copy(["a c"], target=["a"]) == reward(["a c"], target=["a"])


def test_a_plugin_registers_types_once(tmp_path):
    path = tmp_path / "plugin.py"
    path.write_text(
        "from trl_ext.rewards import register_reward\n"
        "@register_reward('plugged')\n"
        "def plugged(completions):\n"
        "    return [float('!' in text) for text in completions]\n"
    )
    for _ in range(2):
        assert make_reward({"type": "plugged"}, plugins=[path])(["a!", "a"]) == [1.0, 0.0]
    with pytest.raises(ConfigError, match=r"plugin 'none.py': no such Python file"):
        make_reward({"type": "plugged"}, plugins=["none.py"])
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"broken.py' raises ZeroDivisionError"):
        make_reward({"type": "plugged"}, plugins=[broken])
