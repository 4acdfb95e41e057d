import json

import pytest

from trl_ext.agents.rubric import WEIGHTS, episode_rubric
from trl_ext.agents.trajectory import Trajectory
from trl_ext.errors import ConfigError


def said(*replies):
    return [{"role": "assistant", "content": reply} for reply in replies]


def call(name):
    return json.dumps({"name": name, "arguments": {}})


EPISODE = {
    "messages": [{"role": "user", "content": call("not an action")}, *said(call("search"), "hm", call("read"))],
    "turns": 6,
    "terminated": True,
    "success": True,
    "metrics": {"invalid": 1.0},
    "seconds": {"episode": 60.0},
}


def test_the_weighted_mean_counted_by_hand():
    scores = episode_rubric(EPISODE, optimal_turns=4, required_actions=["search", "filter", "read", "answer"])
    assert scores == {
        "accuracy": 1.0,
        "efficiency": pytest.approx(1 - 0.5 * 2 / 4),
        "completeness": 0.5,
        "satisfaction": pytest.approx(1 - 0.1 - 0.2 * 0.5),
        "score": pytest.approx(0.4 * 1 + 0.3 * 0.75 + 0.2 * 0.5 + 0.1 * 0.8),
    }
    assert sum(WEIGHTS.values()) == pytest.approx(1)


def test_a_trajectory_is_scored_like_the_dict_of_it():
    trajectory = Trajectory(
        said("a", "b"), rewards=[0.0, 1.0], terminated=True, success=False, metrics={"invalid": 2.0}
    )
    assert episode_rubric(trajectory, optimal_turns=2) == episode_rubric(trajectory.to_json(), optimal_turns=2)
    assert episode_rubric(trajectory, optimal_turns=2)["score"] == pytest.approx(0.3 + 0.2 + 0.08)


def test_the_last_reply_is_compared_with_what_is_expected():
    assert episode_rubric({"messages": said("no", "EUR 12")}, expected="eur 12")["accuracy"] == 1.0
    assert episode_rubric({"messages": said("abcd")}, expected="abxy")["accuracy"] == 0.5
    assert episode_rubric({"messages": []}, expected="x")["accuracy"] == 0.0


def test_what_cannot_be_told_leaves_its_weight_to_the_others():
    scores = episode_rubric({"terminated": False, "turns": 3})
    assert scores == {"completeness": 0.5, "satisfaction": 1.0, "score": pytest.approx((0.2 * 0.5 + 0.1) / 0.3)}
    assert episode_rubric({"turns": 3}, weights={"accuracy": 1.0}) is None


@pytest.mark.parametrize(("turns", "efficiency"), [(1, 1.0), (4, 1.0), (8, 0.5), (12, 0.0), (100, 0.0)])
def test_efficiency_falls_beyond_the_optimum_and_never_leaves_its_range(turns, efficiency):
    assert episode_rubric({"turns": turns}, optimal_turns=4)["efficiency"] == efficiency


def test_many_invalid_replies_and_minutes_cost_all_satisfaction_and_no_more():
    assert episode_rubric({"metrics": {"invalid": 50}})["satisfaction"] == 0.0
    assert episode_rubric({"seconds": {"episode": 10**6}})["satisfaction"] == 0.0


def test_parsed_tool_calls_count_as_actions():
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "search"}}, {"name": "read"}]}
    scores = episode_rubric({"messages": [message]}, required_actions=["search", "read", "answer"])
    assert scores["completeness"] == pytest.approx(2 / 3)


def test_what_an_example_in_the_prompt_did_counts_for_nothing():
    example = [{"role": "user", "content": "?"}, *said(call("read")), {"role": "user", "content": "!"}]
    played = {"messages": [*example, *said(call("search")), {"role": "user", "content": "none"}], "turns": 1}
    scores = episode_rubric(played, required_actions=["search", "read"], expected=call("search"))
    assert (scores["completeness"], scores["accuracy"]) == (0.5, 1.0)
    assert episode_rubric({**played, "messages": example, "turns": 0}, expected=call("read"))["accuracy"] == 0.0


def test_a_call_counts_as_the_environment_reads_it():
    replies = said(f"<tool_call>\n{call('search')}\n</tool_call>", f"I see: {call('read')}", '{"name": 3}')
    scores = episode_rubric({"messages": replies}, required_actions=["search", "read", "3"])
    assert scores["completeness"] == pytest.approx(2 / 3)


def test_a_failed_episode_is_not_scored():
    assert episode_rubric(EPISODE | {"failure": "turn 1: TimeoutError"}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"speed": 1}}, "no criterion 'speed'; there are accuracy"),
        ({"weights": {"accuracy": -1}}, "must be at least 0"),
        ({"optimal_turns": 0}, "optimal_turns = 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        episode_rubric(EPISODE, **options)
