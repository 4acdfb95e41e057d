from types import SimpleNamespace

import pytest

from tests.tracking.played import CUT, DONE, FAILED, LOST
from trl_ext.errors import ConfigError
from trl_ext.tracking.episodes import Action, EpisodeTracker, Played, action_rows, actions, episode_rows


class Kept(EpisodeTracker):
    def __init__(self, episodes):
        super().__init__(episodes)
        self.written = []

    def write(self, episodes, step):
        self.written.append((step, [(one.split, one.trajectory) for one in episodes]))


def log(tracker, step=1):
    tracker.on_log(None, SimpleNamespace(global_step=step), None, logs={"reward": 1.0})


def test_only_the_newest_episodes_are_written_and_each_of_them_once():
    tracker = Kept(3)
    log(tracker, 0)
    tracker([1, 2], "train")
    tracker([3, 4], "eval")
    log(tracker, 5)
    log(tracker, 6)
    tracker([5], "train")
    log(tracker, 7)
    assert tracker.written == [(5, [("train", 2), ("eval", 3), ("eval", 4)]), (7, [("train", 5)])]


def test_the_other_processes_write_nothing():
    tracker = Kept(3)
    tracker([1], "train", 1)
    log(tracker)
    assert tracker.written == []


def test_less_than_one_episode_is_refused():
    with pytest.raises(ConfigError, match="episodes = 0: must be at least 1"):
        Kept(0)


def test_a_turn_has_its_reply_its_answer_its_reward_and_its_times():
    assert list(actions(DONE)) == [
        Action(1, "left", "no", -0.25, 1001.0, 0.25),
        Action(2, '{"name": "search", "arguments": {}}', "yes\ndone", 1.0, 1003.0, 0.5),
    ]


def test_turns_that_the_environment_never_answered_have_no_reward():
    assert list(actions(CUT)) == [Action(1, "left", "no", 0.5, 1001.0, 0.25), Action(2, "righ", "", None, None, None)]
    assert list(actions(FAILED)) == [Action(1, "left", "", None, 1001.0, 20.0)]
    assert list(actions(LOST)) == []


def test_the_rows_of_the_tables():
    played = [Played("train", DONE), Played("eval", FAILED)]
    episodes = episode_rows(played, 8)
    assert episodes[0] == {
        "step": 3, "split": "train", "group": "1.0", "episode": 0, "task": "be kind\n... (14 characters)",
        "success": True, "reward": 0.75, "turns": 2, "tokens": 4, "truncated": "", "failure": "", "seconds": 9.0,
    }  # fmt: skip
    assert (episodes[1]["reward"], episodes[1]["failure"]) == (None, "turn 1: ValueError: broken")
    rows = action_rows(played, 100)
    assert [(row["episode"], row["turn"], row["action"], row["reward"]) for row in rows] == [
        (0, 1, "left", -0.25), (0, 2, '{"name": "search", "arguments": {}}', 1.0), (1, 1, "left", None),
    ]  # fmt: skip
    assert rows[0] == {
        "step": 3, "split": "train", "group": "1.0", "episode": 0, "turn": 1, "action": "left", "answer": "no",
        "reward": -0.25, "seconds": 0.25,
    }  # fmt: skip
