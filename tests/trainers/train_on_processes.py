"""Run by torchrun: train CISPO on this many processes and let the first one save the weights. Takes a job as JSON."""

import json
import sys

import torch

from tests.trainers.training import config, fixed_rollout, load, trained, weights
from trl_ext import CISPOConfig, CISPOTrainer

job = json.loads(sys.argv[1])
args = config(CISPOConfig, per_device_train_batch_size=6, shuffle_dataset=False, **job["options"])
trainer = trained(CISPOTrainer, job["path"], args, model=load(job["path"], torch.float64), rollout_func=fixed_rollout)
if trainer.accelerator.is_main_process:
    assert trainer.accelerator.num_processes == 2
    torch.save(weights(trainer.accelerator.unwrap_model(trainer.model)), job["weights"])
