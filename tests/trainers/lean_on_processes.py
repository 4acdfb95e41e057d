"""Run by torchrun: pairs of lean and plain runs on these processes. Takes a model's folder and the result's file."""

import json
import sys
from pathlib import Path

from trl import GRPOConfig, GRPOTrainer

from tests.ending import end_together
from tests.trainers.lean_runs import Lean, config, distance, letters_on_one_process, nothing, saved, trained
from trl_ext import CISPOConfig, CISPOTrainer, HybridConfig, HybridTrainer, PPOConfig, PPOTrainer

path, result = sys.argv[1:]
TRL = (Lean, GRPOTrainer, GRPOConfig)
CISPO = (CISPOTrainer, CISPOTrainer, CISPOConfig)
adam = {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 10.0}
gate = {"mode": "gate", "rl_loss": "cispo", "kl_coef": 0.0, "num_generations": 4, "gate": 0.5}
runs = {
    "CISPO": (*CISPO, {"loss_aggregation": "prompt"}, {}),
    "grpo": (*TRL, {"loss_type": "grpo"}, {}),
    "dapo-kl": (*TRL, {"loss_type": "dapo", "beta": 0.5}, {}),
    "one has nothing": (*TRL, {"loss_type": "grpo"}, {"reward_funcs": letters_on_one_process}),
    "all have nothing": (*CISPO, adam, {"reward_funcs": nothing}),
    "PPO": (PPOTrainer, PPOTrainer, PPOConfig, {"num_generations": 2}, {}),
    "Hybrid gate": (HybridTrainer, HybridTrainer, HybridConfig, gate, {}),
}
found = {}
for name, (lean, plain, config_class, options, more) in runs.items():
    options = {"max_steps": 4, **options}
    off = {} if plain is GRPOTrainer else {"lean_update": False}
    pair = [
        trained(lean, path, config(config_class, **options), **more),
        trained(plain, path, config(config_class, **options, **off), **more),
    ]
    assert pair[0].accelerator.num_processes == 2
    found[name] = [distance(*pair, path), *saved(pair[0])]
if pair[0].accelerator.is_main_process:
    Path(result).write_text(json.dumps(found))
end_together()
