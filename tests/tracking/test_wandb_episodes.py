import re

import pytest

from tests.agents.test_rollout import trainer_for
from tests.tracking.played import DONE, FAILED, LOST
from tests.tracking.wandb_run import OfflineRun
from trl_ext.agents.trajectory import TrajectoryRecorder, read_trajectories
from trl_ext.tracking.episodes import Played
from trl_ext.tracking.wandb_episodes import WandbEpisodes


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """W&B, offline, with all of its files in a folder of the test."""
    import wandb

    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield wandb
    wandb.teardown()


def test_a_run_has_tables_of_its_episodes_and_actions_its_metrics_and_its_model(tiny, tmp_path, monkeypatch, wandb):
    """In the one run that transformers opens; TensorBoard beside it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    tracker = WandbEpisodes(episodes=6)
    trainer = trainer_for(
        tiny,
        rollout={"recorder": [tracker, TrajectoryRecorder(tmp_path / "t", ["jsonl"])]},
        config_options={"report_to": ["wandb", "tensorboard"], "max_steps": 2, "output_dir": str(tmp_path / "out")},
        callbacks=[tracker],
    )
    trainer.train()
    wandb.teardown()  # `finish` leaves the last of it to the service

    run, played = OfflineRun(tmp_path), read_trajectories(tmp_path / "t")
    assert len(run.runs) == 1
    episodes, actions = run.tables("episodes"), run.tables("actions")
    assert len(episodes) == len(actions) == 2
    for step in range(2):
        newest = played[8 * step + 2 : 8 * step + 8]  # of 8, the newest 6
        assert [(row["step"], row["reward"], row["turns"]) for row in episodes[step]] == [
            (step, pytest.approx(one.reward), one.turns) for one in newest
        ]
        replies = [(n, reply, answer) for n, one in enumerate(newest) for reply, answer in one.exchanges()]
        assert [(row["episode"], row["action"], row["answer"]) for row in actions[step]] == replies
        answered = [row["reward"] for row in actions[step] if row["reward"] is not None]
        assert answered == pytest.approx([reward for one in newest for reward in one.rewards])
        assert all(row["seconds"] > 0 for row in actions[step] if row["reward"] is not None)
    logged = [row for row in run.history if "episodes.path" in row]
    assert [row["train/global_step"] for row in logged] == [1, 2]
    rewards = [row["train/reward"] for row in run.history if "train/reward" in row]
    assert rewards == [log["reward"] for log in trainer.state.log_history[:2]]
    model = [one for one in run.artifacts if "final_model" in one.aliases]
    assert "model.safetensors" in {file.path for file in model[0].manifest.contents}

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("train/reward")] == pytest.approx(rewards)
    assert "train/episode/success" in board.Tags()["scalars"]


def test_the_table_of_actions_is_bounded_and_its_texts_are(wandb, tmp_path):
    with wandb.init(project="x"):
        WandbEpisodes(actions=3, most_text=10).write([Played("train", one) for one in (FAILED, DONE, LOST, DONE)], 1)
    wandb.teardown()
    run = OfflineRun(tmp_path)
    (actions,) = run.tables("actions")
    assert [(row["episode"], row["turn"]) for row in actions] == [(1, 2), (3, 1), (3, 2)]
    assert re.fullmatch(r"\{\"name\": \"\.\.\. \(35 characters\)", actions[0]["action"])

    (episodes,) = run.tables("episodes")
    assert [(row["reward"], row["success"], row["failure"]) for row in episodes[:2]] == [
        (None, None, "turn 1: ValueError: broken"), (0.75, True, ""),
    ]  # fmt: skip


def test_without_a_run_nothing_is_written(wandb):
    WandbEpisodes().write([Played("train", DONE)], 1)
    assert wandb.run is None
