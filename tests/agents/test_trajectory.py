import json
import re

import pandas as pd
import pytest

from trl_ext.agents.environment import Step
from trl_ext.agents.trajectory import (
    Trajectory,
    TrajectoryRecorder,
    failure_text,
    read_trajectories,
    write_trajectories,
)
from trl_ext.cli import main
from trl_ext.errors import ConfigError, DatasetError


def played(step=0, reward=1.0, **changes):
    """An episode of two turns."""
    values = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "which?"}]},
            {"role": "assistant", "content": "left\nor right"},
            {"role": "user", "content": "no: \u00e9\U0001f642"},
            {"role": "assistant", "content": "right", "tool_calls": [{"name": "go", "arguments": {"to": "right"}}]},
        ],
        "prompt_ids": [1, 2],
        "completion_ids": [3, 4, 5, 6, 7],
        "mask": [1, 1, 0, 1, 1],
        "logprobs": [-0.5, -0.25, 0.0, -1.0, -2.0],
        "rewards": [-0.25, reward],
        "turn_ends": [1, 4],
        "terminated": True,
        "success": True,
        "metrics": {"score": 3.0, "invalid": 0.0},
        "step": step,
        "group": "0.0",
        "seconds": {"environment": 0.5, "episode": 1.0},
        "row": {"seed": 7, "tags": ["a"]},
    }
    return Trajectory(**{**values, **changes})


FAILED = Trajectory([{"role": "user", "content": "hi"}], failure="turn 1: ValueError: broken", step=3, prompt_ids=[1])


def test_turn_rewards_stand_on_the_last_tokens_of_their_turns():
    one = played()
    assert one.token_rewards == [0.0, -0.25, 0.0, 0.0, 1.0]
    assert (one.reward, one.turns, one.sampled_tokens) == (0.75, 2, 4)
    assert FAILED.reward is None


def test_steps_add_up_to_an_episode():
    one = Trajectory([], completion_ids=[5, 6])
    one.add(Step("again", 0.5, False, False, {"score": 2, "name": "x", "success": False, "far": float("inf")}))
    one.completion_ids += [7, 8, 9]
    one.add(Step([{"role": "tool", "content": "t"}], -0.1, False, True, {"invalid": "no JSON", "score": 3}))
    assert one.messages == [{"role": "user", "content": "again"}, {"role": "tool", "content": "t"}]
    assert (one.rewards, one.turn_ends) == ([0.5, -0.1], [1, 4])
    assert one.metrics == {"score": 3.0, "success": 0.0, "invalid": 1.0}
    assert (one.success, one.terminated, one.truncated) == (False, False, "environment")


EXAMPLE = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "up"}]


def test_the_models_replies_are_told_from_those_of_examples_in_the_prompt():
    one = played()
    one.messages = [*EXAMPLE, *one.messages, {"role": "user", "content": "yes"}]
    assert (one.replies, one.opening) == ([3, 5], "go\nup\nwhich?")
    assert one.exchanges() == [("left\nor right", "no: \u00e9\U0001f642"), ("right", "yes")]
    cut = played(rewards=[0.5], messages=one.messages[:-1])  # its last turn was never answered
    assert cut.replies == [3, 5]
    assert played(messages=EXAMPLE + [{"role": "user", "content": "?"}], rewards=[]).exchanges() == []
    assert FAILED.exchanges() == []


def test_what_is_over_was_not_cut_off():
    one = Trajectory([])
    one.add(Step("done", 1.0, True, True, {}))
    assert (one.terminated, one.truncated) == (True, "")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_is_written_is_what_is_read(tmp_path, suffix):
    batch = [played(), FAILED, played(logprobs=None, success=None, rewards=[], turn_ends=[], metrics={})]
    write_trajectories(tmp_path / f"x.{suffix}", batch)
    assert read_trajectories(tmp_path / f"x.{suffix}") == batch
    assert [file.name for file in tmp_path.iterdir()] == [f"x.{suffix}"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_no_character_of_a_text_breaks_a_file(tmp_path, suffix):
    """Those that end a line for Python and not in JSON, and half an emoji, which UTF-8 does not have."""
    batch = [
        played(messages=[{"role": "user", "content": text}]) for text in ("a\u2028b\x85c\x0bd", "\ud83d", "\0\r\n")
    ]
    write_trajectories(tmp_path / f"x.{suffix}", batch)
    assert read_trajectories(tmp_path / f"x.{suffix}") == batch


def test_a_failure_is_one_line_that_any_file_can_hold(tmp_path):
    failure = failure_text(ValueError("no\nsuch \ud83d"))
    assert failure == "ValueError: no such ?"
    write_trajectories(tmp_path / "x.parquet", [Trajectory([], failure=failure)])
    assert read_trajectories(tmp_path / "x.parquet")[0].failure == failure


def test_empty_lines_are_passed_over(tmp_path):
    write_trajectories(tmp_path / "x.jsonl", [played()])
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write("\n  \n")
    assert read_trajectories(tmp_path / "x.jsonl") == [played()]


def test_parquet_and_jsonl_can_be_read_without_this_package(tmp_path):
    TrajectoryRecorder(tmp_path)([played(), FAILED], "train")
    table = pd.read_parquet(next(tmp_path.glob("*.parquet")))
    assert table["reward"].fillna(-1).tolist() == [0.75, -1]
    assert list(table["completion_ids"][0]) == [3, 4, 5, 6, 7]
    row = json.loads(next(tmp_path.glob("*.jsonl")).read_text().splitlines()[0])
    assert (row["reward"], row["turns"], row["messages"][1]["content"]) == (0.75, 2, "left\nor right")


def test_a_recorder_keeps_every_batch_of_every_process_and_of_a_resumed_run(tmp_path):
    for recorder in (TrajectoryRecorder(tmp_path), TrajectoryRecorder(tmp_path)):
        for step in (0, 2):
            for process in (0, 1):
                recorder([played(step)], "train", process)
        recorder([played(2)], "eval")
        recorder([], "train")
    names = {file.name for file in tmp_path.glob("*.jsonl")}
    assert {"train_000000_p0_000.jsonl", "train_000002_p1_001.jsonl", "eval_000002_p0_000.jsonl"} < names
    assert len(names) == len(list(tmp_path.glob("*.parquet"))) == 10
    assert len(read_trajectories(tmp_path)) == 10
    with pytest.raises(ConfigError, match="no 'csv'; there are jsonl, parquet"):
        TrajectoryRecorder(tmp_path, ["csv"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no trajectories"),
        ("{", "cannot be read"),
        ("[1]", ":1: no trajectory"),
        ('{"a": 1}', "no trajectory"),
        ('{"messages": null}', ":1: no trajectory: 'messages' is None, and must be a list"),
        ('{"messages": ["x"]}', ":1: no trajectory: each of its 'messages' must be an object with a 'role'"),
        ('{"messages": [{"content": "x"}]}', "must be an object with a 'role'"),
        ('{"messages": [], "rewards": null}', "'rewards' is None, and must be a list"),
        ('{"messages": [], "row": 3}', "'row' is 3, and must be a dict"),
    ],
)
def test_what_is_no_trajectory_is_refused_with_its_place(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(DatasetError, match=re.escape(message)):
        read_trajectories(tmp_path / "x.jsonl")
    pd.DataFrame({"messages": [3]}).to_parquet(tmp_path / "x.parquet")
    for name in ("none.jsonl", "x.parquet"):
        with pytest.raises(DatasetError, match=f"{name}' cannot be read"):
            read_trajectories(tmp_path / name)
    with pytest.raises(ConfigError, match=r"are written as .jsonl or .parquet"):
        write_trajectories(tmp_path / "x.csv", [played()])


def test_show_replays_an_episode_turn_by_turn(tmp_path, capsys):
    write_trajectories(tmp_path / "x.jsonl", [FAILED, played()])
    main(["trajectories", "show", str(tmp_path / "x.jsonl"), "--episode", "1"])
    assert capsys.readouterr().out == (
        "episode 1 of 2, step 0, group 0.0\nseed=7  tags=['a']\n"
        "\n[user]\n  which?\n\n[assistant] turn 1\n  left\n  or right\n  -> reward -0.25\n"
        "\n[user]\n  no: \u00e9\U0001f642\n\n[assistant] turn 2\n  right\n  -> reward +1\n"
        "\nover, success, reward 0.75, 2 turns, 4 tokens sampled\n"
    )
    examples = played()
    examples.messages = [*EXAMPLE, *examples.messages, {"role": "user", "content": "yes"}]
    write_trajectories(tmp_path / "y.jsonl", [examples])
    main(["trajectories", "show", str(tmp_path / "y.jsonl")])
    assert "[assistant]\n  up\n\n[user]\n  which?\n\n[assistant] turn 1" in capsys.readouterr().out
    main(["trajectories", "show", str(tmp_path / "x.jsonl")])
    assert "FAILED at turn 1: ValueError: broken" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--episode 2: there are 2, 0 to 1"):
        main(["trajectories", "show", str(tmp_path / "x.jsonl"), "--episode", "2"])


def test_stats_sum_up_by_step_and_in_all(tmp_path, capsys):
    won, lost = played(0, 1.0), played(3, 0.0, success=None, terminated=False, truncated="max_turns")
    write_trajectories(tmp_path / "x.parquet", [won, won, won, lost, FAILED, FAILED])
    main(["trajectories", "stats", str(tmp_path / "x.parquet")])
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0] == ["episodes", "success", "reward", "std", "turns", "tokens", "cut", "off", "failed"]
    assert table[1] == ["step", "0", "3", "1.000", "0.750", "0.000", "2.000", "4.000", "0.000", "0"]
    assert table[2] == ["step", "3", "3", "0.000", "-0.250", "0.000", "2.000", "4.000", "1.000", "2"]
    assert table[3] == ["all", "6", "0.750", "0.500", "0.433", "2.000", "4.000", "0.250", "2"]
    assert table[-1] == ["2", "turn", "1:", "ValueError:", "broken"]


def test_where_no_episode_says_what_success_is_there_is_no_rate(tmp_path, capsys):
    write_trajectories(tmp_path / "x.jsonl", [played(success=None), played(success=None)])
    main(["trajectories", "stats", str(tmp_path / "x.jsonl")])
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["all", "2", "-", "0.750"]
    main(["trajectories", "show", str(tmp_path / "x.jsonl")])
    assert "over, no word of success, reward 0.75" in capsys.readouterr().out
