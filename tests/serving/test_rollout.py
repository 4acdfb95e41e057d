import torch

from tests.agents.talk import ROWS, Talk
from tests.serving.playing import PLAY, play, remote_trainer, serving, trainer_of, workers
from trl_ext.agents.rollout import environment_rollout

FREE = ("seconds",)  # what may differ between two rollouts of the same episodes


def fields(trajectory):
    return {name: value for name, value in trajectory.to_json().items() if name not in FREE}


def test_a_workers_episodes_are_those_of_the_rollout_in_process_token_for_token(tiny):
    """One worker with a place for each episode: the same batches, so the same random numbers and log-probs."""
    here = play(trainer_of(tiny, environment_rollout(Talk, step_timeout=20.0, **PLAY)), ROWS.select(range(12)))
    with serving() as server, workers(server):
        there = play(remote_trainer(tiny, server, {"gather_seconds": 30.0}), ROWS.select(range(12)))
    assert [fields(one) for one in there["trajectory"]] == [fields(one) for one in here["trajectory"]]
    for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask", "token_rewards"):
        assert there[name] == here[name]
    assert {one.truncated for one in there["trajectory"]} >= {"", "max_turns"}
    assert len({one.turns for one in there["trajectory"]}) > 2
    counters = server.desk.ledger.counters
    assert (counters.asked, counters.done, counters.open) == (12, 12, 0)
    assert torch.is_tensor(torch.tensor(there["logprobs"][0]))
