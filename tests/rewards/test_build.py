import threading

import pytest

from tests.rewards.test_reward import SUM
from trl_ext.rewards import make_reward, make_reward_funcs, register_reward


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


@pytest.fixture
def waiting():
    """A type that scores when another one, `computing`, was called too; and how often it was called."""
    computed, calls = threading.Event(), []

    @register_reward("waiting", waits=True)
    def wait(completions):
        calls.append(list(completions))
        assert computed.wait(60), "nothing computes while this waits"
        computed.clear()
        return [1.0] * len(completions)

    @register_reward("computing")
    def compute(completions):
        computed.set()
        return [0.5] * len(completions)

    return calls


WAITING = {"type": "weighted_sum", "components": [{"type": "waiting"}, {"type": "computing"}]}


def test_a_component_that_waits_runs_beside_one_that_computes(waiting):
    reward = make_reward(WAITING)
    for _ in range(3):
        assert reward(["a", "b"]) == [0.75, 0.75]
    assert waiting == [["a", "b"]] * 3


def test_functions_of_one_spec_start_those_that_wait_with_the_first_call(waiting):
    (wait, compute), _ = make_reward_funcs(WAITING)
    for first, second in ((wait, compute), (compute, wait), (wait, compute)):
        completions = ["a"]
        assert (first(completions), second(completions)) in (([1.0], [0.5]), ([0.5], [1.0]))
    assert waiting == [["a"]] * 3


def test_a_function_that_the_trainer_does_not_have_is_not_called_over_and_over(waiting):
    (_, compute), _ = make_reward_funcs(WAITING)
    before = set(threading.enumerate())
    for text in "abcde":
        assert compute([text]) == [0.5]
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert waiting == [["a"]]


def test_what_was_started_for_another_batch_is_not_taken():
    for name in ("ahead", "behind"):
        register_reward(name, waits=name == "ahead")(lambda completions: [float(len(text)) for text in completions])
    (ahead, behind), _ = make_reward_funcs(
        {"type": "weighted_sum", "components": [{"type": "ahead"}, {"type": "behind"}]}
    )
    assert behind(["a"]) == [1.0]
    assert ahead(["bb"]) == [2.0]
    assert behind(["ccc"]) == [3.0]
