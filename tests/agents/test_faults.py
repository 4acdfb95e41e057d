"""A run in which a fifth of the environments and a fifth of the judge's answers are bad."""

import json

import pytest

from tests.agents.talk import ROWS, Faulty
from tests.agents.test_rollout import TRAINERS, trainer_for
from tests.rewards.chat_server import ChatServer
from tests.rewards.test_ruler import shown
from trl_ext.agents.environment_reward import environment_reward
from trl_ext.agents.trajectory import TrajectoryRecorder, read_trajectories
from trl_ext.agents.trajectory_view import stats
from trl_ext.rewards import chat_endpoint, make_reward


class Judged(Faulty):
    """Says its seed first, so that the judge knows which episodes it sees."""

    def reset(self, **row):
        return f"{row['seed']}:{super().reset(**row)}"


def worth(lines):
    """What the judge thinks of a trajectory: something from 0 to 1 that depends on all of it."""
    return sum(json.dumps(lines).encode()) % 97 / 96


class Judge:
    """Answers well, but for one goal in five: those whose seed is 1 more than a multiple of 5."""

    def __init__(self):
        self.scores = {}

    def __call__(self, body, number):
        blocks = shown(body)
        common = blocks.pop("COMMON", [])
        entries = [{"id": int(name), "explanation": "", "score": worth(lines)} for name, lines in blocks.items()]
        seed = int((common or blocks["1"])[0]["content"].split(":")[0])
        if seed % 5 == 1:
            return self.fault(entries, seed // 5 % 5)
        self.scores |= {json.dumps(common + lines): worth(lines) for lines in blocks.values()}
        return json.dumps(entries)

    def fault(self, entries, kind):
        if kind == 0:
            return 200, "", {"drip": True}  # never comes to its end
        if kind == 1:
            return json.dumps(entries)[:-5]
        if kind == 2:
            return json.dumps([{**one, "score": 7} for one in entries])
        if kind == 3:
            return json.dumps([{**one, "id": one["id"] + 1} for one in entries])
        return 500, "out of memory", {}


@pytest.mark.slow
def test_training_goes_on_and_what_is_scored_is_scored_right(tiny, tmp_path, caplog, monkeypatch, patient):
    """Two batches of 25 goals, 2 episodes each: all kinds of faults are in them."""
    trainer_class, config_class = TRAINERS["CISPO"]
    batches = []

    class Kept(trainer_class):
        def _calculate_rewards(self, inputs, *args, **kwargs):
            rewards = super()._calculate_rewards(inputs, *args, **kwargs)
            batches.append((inputs, rewards))
            return rewards

    monkeypatch.setattr(chat_endpoint, "BACKOFF", 0.001)
    server, judge = ChatServer(), Judge()
    server.answer = judge
    ruler = make_reward(
        {"type": "ruler", "model": "m", "base_url": server.url, "timeout": 1.0, "retries": 2, "concurrency": 4}
    )  # again, if the machine has stalled: what has a fault has it each time
    options = {"num_generations": 2, "per_device_train_batch_size": 50, "max_steps": 2, "shuffle_dataset": False}
    trainer = trainer_for(
        tiny,
        (Kept, config_class),
        environment=Judged,
        rows=ROWS.select(range(50)),
        rollout={"step_timeout": 0.2, "recorder": TrajectoryRecorder(tmp_path, ["jsonl"])},
        reward_funcs=[environment_reward, ruler],
        config_options=options,
    )
    try:
        trainer.train()
    finally:
        server.close()

    assert trainer.state.global_step == 2
    played = [
        (row["seed"], row["trajectory"], *scores)
        for rows, s in batches
        for row, scores in zip(rows, s.tolist(), strict=True)
    ]
    assert len(played) == 100
    for seed, one, environments, judges in played:
        if seed % 5 == 0:  # the environment failed: of no reward, the judge never saw it
            assert one.failure is not None
            assert environments != environments
            assert judges != judges
        else:
            assert one.failure is None
            assert environments == pytest.approx(one.reward)
            if seed % 5 == 1:  # the judge failed: of its reward only
                assert judges != judges
            else:
                lines = [{name: message[name] for name in ("role", "content")} for message in one.messages]
                assert judges == pytest.approx(judge.scores[json.dumps(lines)])
    assert len(judge.scores) > 50
    recorded = read_trajectories(tmp_path)
    assert sum(one.failure is not None for one in recorded) == len(trainer.rollout.failures) == 20
    report = stats(recorded)
    for kind in ("broken pipe", "took longer", "nonsense", "must be a finite number", "SystemExit", "no such mailbox"):
        assert kind in report
    assert "no reply in 1 s" in caplog.text
    assert "HTTP 500: out of memory" in caplog.text
    assert ruler._scorer.unparsed == 2 * 3
