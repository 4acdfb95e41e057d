"""Run by torchrun: train on this many processes and let the first one save the weights. Takes a job as JSON."""

import json
import sys

import torch

from tests.trainers.training import config, fixed_rollout, load, trained, weights
from trl_ext import CISPOConfig, CISPOTrainer, PPOConfig, PPOTrainer

job = json.loads(sys.argv[1])
trainers = {"CISPO": (CISPOTrainer, CISPOConfig), "PPO": (PPOTrainer, PPOConfig)}
trainer_class, config_class = trainers[job.get("trainer", "CISPO")]
args = config(config_class, per_device_train_batch_size=6, shuffle_dataset=False, **job["options"])
trainer = trained(trainer_class, job["path"], args, model=load(job["path"], torch.float64), rollout_func=fixed_rollout)
if trainer.accelerator.is_main_process:
    assert trainer.accelerator.num_processes == 2
    torch.save(weights(trainer.accelerator.unwrap_model(trainer.model)), job["weights"])
