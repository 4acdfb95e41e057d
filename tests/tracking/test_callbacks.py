import json
from types import SimpleNamespace

import pytest

from trl_ext.tracking import callbacks
from trl_ext.tracking.callbacks import MetricsFile, RewardProgress, read_metrics


def state(step, main=True):
    return SimpleNamespace(global_step=step, max_steps=4, is_world_process_zero=main)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "metrics.jsonl"


def run(path, steps, resume=False, start=0):
    metrics = MetricsFile(path, resume=resume)
    metrics.on_train_begin(None, state(start), None)
    for step in steps:
        metrics.on_log(None, state(step), None, logs={"reward": step / 10})


def test_a_new_run_starts_a_new_file(path):
    run(path, [1, 2, 3])
    run(path, [1])
    assert read_metrics(path) == [{"step": 1, "reward": 0.1}]


def test_a_resumed_run_drops_the_steps_that_it_repeats_and_a_torn_line(path):
    run(path, [1, 2, 3, 4])
    with path.open("a") as file:
        file.write('{"step": 5, "rew')
    run(path, [3, 4], resume=True, start=2)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]


def test_a_run_resumed_at_its_end_repeats_nothing_and_a_longer_one_forgets_the_end(path):
    run(path, [1, 2, 3, 4])
    end = [{"step": 4, "train_runtime": 1.0}, {"step": 4, "split": "train", "measured": "after", "eval_reward": 1.0}]
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in end)
    again = MetricsFile(path, resume=True)
    again.on_train_begin(None, state(4), None)
    again.on_log(None, state(4), None, logs={"train_runtime": 0.1})
    assert read_metrics(path)[4:] == end
    longer = SimpleNamespace(global_step=4, max_steps=8, is_world_process_zero=True)
    again.on_train_begin(None, longer, None)
    again.on_log(None, longer, None, logs={"train_runtime": 0.1})
    assert read_metrics(path)[4:] == [{"step": 4, "train_runtime": 0.1}]


def test_marked_lines_say_what_they_measure(path):
    metrics = MetricsFile(path)
    with metrics.marked(split="heldout"):
        metrics.on_log(None, state(0), None, logs={"eval_reward": 1.0})
    metrics.on_log(None, state(1), None, logs={"reward": 1.0})
    assert [row.get("split") for row in read_metrics(path)] == ["heldout", None]


def test_only_the_main_process_writes(path, monkeypatch):
    monkeypatch.setattr(callbacks, "PartialState", lambda: SimpleNamespace(is_main_process=False))
    metrics = MetricsFile(path)
    metrics.on_log(None, state(1, main=False), None, logs={"reward": 1.0})
    assert not path.exists()


def test_progress_bar_shows_the_latest_metrics():
    shown = {}
    progress = RewardProgress()
    progress.training_bar = SimpleNamespace(set_postfix=shown.update)
    progress.on_log(None, state(1), None, logs={"reward": 0.51234, "entropy": None, "clip_ratio/high_positive": 0.25})
    assert json.dumps(shown) == '{"reward": "0.512", "clip_ratio": "0.25"}'
