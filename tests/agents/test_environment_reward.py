import pytest

from trl_ext.agents.environment_reward import environment_reward, episode_metrics
from trl_ext.agents.trajectory import Trajectory

PLAYED = [
    Trajectory([], rewards=[1.0, 0.5], success=True, metrics={"score": 4.0}),
    Trajectory([], rewards=[-1.0], truncated="context", metrics={"score": 2.0, "rare": 8.0}),
    Trajectory([], rewards=[9.0], failure="turn 2: it broke", metrics={"score": 100.0}),
]


def test_the_metrics_are_means_over_the_episodes_that_were_played():
    assert episode_metrics(PLAYED) == {
        "failed": pytest.approx(1 / 3), "success": 0.5, "turns": 1.5, "truncated": 0.5, "score": 3.0, "rare": 8.0,
    }  # fmt: skip
    assert episode_metrics(PLAYED[2:]) == {"failed": 1.0}
    assert "success" not in episode_metrics([Trajectory([], rewards=[1.0])])


def test_the_reward_is_the_sum_of_the_turns_and_none_of_an_episode_that_failed():
    metrics, extra = {}, {}
    found = environment_reward(["a"] * 3, PLAYED, log_metric=metrics.__setitem__, log_extra=extra.__setitem__)
    assert found == [1.5, -1.0, None]
    assert (metrics["episode/turns"], extra) == (1.5, {"failure": ["", "", "turn 2: it broke"]})
