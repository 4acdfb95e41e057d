import math
import pickle
import queue
import sys
import threading

import pytest

from trl_ext.errors import ConfigError, MissingExtraError, RewardError
from trl_ext.rewards import make_reward, make_reward_funcs, register_reward
from trl_ext.rewards.postprocess import EMANormalize

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


def test_a_row_is_a_repeated_one_only_where_all_its_columns_are_the_same():
    rows = []

    @register_reward("paired")
    def pair(completions, target, level):
        rows.extend(zip(completions, target, level, strict=True))
        return [float(len(text) + len(references) + size) for text, references, size in rows]

    columns = {"target": [["x"], ["y"], ["y"], ["x"], ["x"]], "level": [1, 1, 1, 1, 2]}
    assert make_reward({"type": "paired"})(["a"] * 4 + ["bb"], **columns) == [3.0, 3.0, 3.0, 3.0, 5.0]
    assert rows == [("a", ["x"], 1), ("a", ["y"], 1), ("bb", ["x"], 2)]


def test_texts_are_told_apart_from_what_they_look_like_as_json():
    register_reward("typed")(lambda completions, target: [float(len(str(type(value)))) for value in target])
    targets = ["1", 1, 1.0, "[1]", [1], "[1]", [1]]
    scores = make_reward({"type": "typed"})(["a"] * 7, target=targets)
    assert scores == [float(len(str(type(value)))) for value in targets]


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


def test_a_batch_that_takes_too_long_counts_as_one_that_raises():
    release, entered = threading.Event(), queue.SimpleQueue()

    @register_reward("hanging")
    def hang(completions):
        entered.put(completions)
        if completions == ["hang"]:
            release.wait(60)
        return [1.0] * len(completions)

    spec = {"type": "hanging", "timeout": 0.2}
    with pytest.raises(
        RewardError, match=r"hanging cannot score a batch: TimeoutError: no scores within timeout = 0.2"
    ):
        make_reward(spec)(["hang"])
    reward = make_reward({**spec, "on_error": "none"})
    assert reward(["hang"]) == [None]
    assert [entered.get(timeout=60) for _ in range(2)] == [["hang"]] * 2
    assert reward(["b"]) == [None]  # the last batch hangs still: the scorer is not entered beside it
    assert entered.empty()
    release.set()
    assert make_reward({"type": "hanging", "timeout": 60})(["c"]) == [1.0]


def test_a_scorer_that_ends_its_thread_is_not_waited_for():
    @register_reward("exiting", waits=True)
    def leave(completions):
        raise SystemExit("no licence")

    with pytest.raises(SystemExit, match="no licence"):
        make_reward({"type": "exiting"})(["a"])


def test_postprocessors_run_in_the_callers_thread(monkeypatch):
    """They may talk to other processes, which must all do so in the same order."""
    threads = []
    note = lambda self, scores: threads.append(threading.current_thread()) or scores  # noqa: E731
    monkeypatch.setattr(EMANormalize, "__call__", note)
    register_reward("elsewhere", waits=True)(lambda completions: [1.0] * len(completions))
    make_reward({"type": "elsewhere", "timeout": 9, "postprocess": [{"type": "ema_normalize"}]})(["a"])
    assert threads == [threading.current_thread()]


def test_a_reward_of_its_own_timeout_keeps_it():
    """The type's own means something finer than the time of a batch."""
    make_reward({"type": "format", "pattern": "a", "timeout": 0.5})
    with pytest.raises(ConfigError, match=r"timeout = 0"):
        make_reward({"type": "jaccard", "timeout": 0})


def test_a_breakdown_has_every_part_and_computes_it_once(failing):
    spec = {
        "type": "minimum",
        "components": [{"type": "failing"}, {"type": "product", "components": [{"type": "jaccard"}]}],
    }
    parts = make_reward(spec).breakdown(["a", "bb"], target=["a", "a"])
    assert parts == {"minimum": [1.0, 0.0], "failing": [1.0, 2.0], "product": [1.0, 0.0], "jaccard": [1.0, 0.0]}
    assert failing == [["a", "bb"]]


def test_rows_that_json_cannot_hold_are_told_apart():
    """Their repr may leave out where they differ, as that of a long array does."""

    class Picture:
        def __init__(self, value):
            self.value = value

        def __repr__(self):
            return "<picture>"

    register_reward("pictured")(lambda completions, image: [float(picture.value) for picture in image])
    assert make_reward({"type": "pictured"})(["a", "a"], image=[Picture(1), Picture(2)]) == [1.0, 2.0]
