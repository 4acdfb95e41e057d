"""Run by torchrun: train on this many processes and let the first one save the weights. Takes a job as JSON."""

import json
import sys

import torch

from tests.ending import end_together
from tests.trainers.training import (
    config,
    demonstrations,
    fixed_rollout,
    load,
    parity,
    ragged_rollout,
    trained,
    weights,
)
from trl_ext import CISPOConfig, CISPOTrainer, HybridConfig, HybridTrainer, PPOConfig, PPOTrainer

job = json.loads(sys.argv[1])
trainers = {
    "CISPO": (CISPOTrainer, CISPOConfig),
    "PPO": (PPOTrainer, PPOConfig),
    "Hybrid": (HybridTrainer, HybridConfig),
}
trainer_class, config_class = trainers[job.get("trainer", "CISPO")]
args = config(config_class, per_device_train_batch_size=6, shuffle_dataset=False, **job["options"])
options = {"rollout_func": fixed_rollout}
if "demonstrations" in job:
    data = demonstrations(job["demonstrations"])
    options = {"rollout_func": ragged_rollout, "train_dataset": data, "reward_funcs": parity}
trainer = trained(trainer_class, job["path"], args, model=load(job["path"], torch.float64), **options)
if trainer.accelerator.is_main_process:
    assert trainer.accelerator.num_processes == 2
    torch.save(weights(trainer.accelerator.unwrap_model(trainer.model)), job["weights"])
end_together()
