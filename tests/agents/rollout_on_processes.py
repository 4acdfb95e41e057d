"""Run by torchrun: train on episodes whose groups lie on both processes and which end at different times.

Then PPO with a reward for each turn, then failures on both.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object

from tests.agents.per_turn import UNDISCOUNTED, Keeping, returns
from tests.agents.talk import ROWS, Faulty, Talk
from tests.ending import end_together
from tests.trainers.training import config, make_trainer, weights
from trl_ext import CISPOConfig, CISPOTrainer, PPOConfig
from trl_ext.agents.environment_reward import environment_reward
from trl_ext.agents.rollout import environment_rollout
from trl_ext.agents.trajectory import TrajectoryRecorder
from trl_ext.errors import EpisodeFailuresError


class Uneven(Talk):
    """Episodes of the second process end at once, those of the first go on."""

    def reset(self, **row):
        self.ends = float(os.environ["RANK"])
        return super().reset(**row)


job = json.loads(sys.argv[1])
shared = {"per_device_train_batch_size": 6, "max_completion_length": 50, "shuffle_dataset": False}
args = config(CISPOConfig, **shared, num_generations=4, max_steps=2)


def trainer_of(environment, trainer_class=CISPOTrainer, args=args, **options):
    rollout = environment_rollout(environment, max_turns=4, max_turn_tokens=5, step_timeout=20.0, **options)
    data = {"reward_funcs": [environment_reward], "train_dataset": ROWS}
    return make_trainer(trainer_class, job["path"], args, rollout_func=rollout, **data)


trainer = trainer_of(Uneven, recorder=TrajectoryRecorder(job["folder"], ["jsonl"]))
trainer.train()
assert trainer.accelerator.num_processes == 2
mine = weights(trainer.accelerator.unwrap_model(trainer.model))
of_all = gather_object([mine])
ppo = trainer_of(Uneven, Keeping, config(PPOConfig, **shared, **UNDISCOUNTED, num_ppo_epochs=1))
ppo.train()
for found, expected in returns(ppo):
    assert abs(found - expected) < 1e-4
assert any(row["trajectory"].turns for row in ppo.inputs)
try:
    trainer_of(Faulty, max_failures=1).train()
    message = None
except EpisodeFailuresError as error:
    message = str(error)
messages = gather_object([message])
if trainer.accelerator.is_main_process:
    assert torch.equal(*of_all)
    Path(job["result"]).write_text(json.dumps(messages))
end_together()
