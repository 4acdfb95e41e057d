"""ZeRO-2 and ZeRO-3 on two CPU processes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.launching import on_two_processes
from tests.trainers.training import config, demonstrations, parity, ragged_rollout, trained
from trl_ext import HybridConfig, HybridTrainer

pytest.importorskip("deepspeed")
STEPS = 4
OPTIONS = {
    "num_generations": 2,
    "num_ppo_epochs": 1,
    "kl_coef": 0.0,
    "vf_coef": 1.0,
    "max_steps": STEPS,
    "lr_scheduler_type": "linear",
    "value_learning_rate": 0.1,
    "scheduler": "cosineannealing",
    "warmup_steps": 1,
    "merge_every": STEPS,
}
COSINE = [0.0, 1e-2, 0.75e-2, 0.25e-2]  # one step of warm-up, half a cosine of three


def run(stage, tiny, folder, **job):
    file = folder / "accelerate.yaml"
    deepspeed = {"zero_stage": stage, "gradient_accumulation_steps": 1, "zero3_save_16bit_model": True}
    launcher = {"distributed_type": "DEEPSPEED", "use_cpu": True, "mixed_precision": "no", "num_processes": 2}
    file.write_text(yaml.safe_dump({**launcher, "deepspeed_config": deepspeed}))
    job = {"path": tiny, "out": str(folder), **job, "options": {**OPTIONS, **job["options"]}}
    on_two_processes("tests.trainers.train_under_deepspeed", json.dumps(job), config=file)


def merged(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / f"merged-{STEPS}")
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def check(folder, optimizer, groups=4):
    result = json.loads((folder / "result.json").read_text())
    assert optimizer in result["optimizer"][-1]
    assert result["groups"] == groups  # with and without decay, and the same of the value head with a rate of its own
    assert result["whole"] == result["resumed"] == pytest.approx(COSINE)
    assert (merged(folder / "whole") - merged(folder / "resumed")).abs().max() <= 1e-6
    heads = [load_file(folder / name / "value_head.safetensors") for name in ("whole", "resumed")]
    assert heads[0]["head.weight"].abs().max() > 0
    for name, tensor in heads[0].items():
        torch.testing.assert_close(tensor, heads[1][name], rtol=0, atol=1e-6)
    return result


def test_zero_2_trains_as_one_process_with_the_optimizer_of_the_spec(tiny, tmp_path):
    options = {"optimizer": {"name": "sgd", "momentum": 0.5}, "merge_average": 0.3}
    run(2, tiny, tmp_path, options=options, lora=[False])
    check(tmp_path / "full", "torch.optim.sgd.SGD")
    args = config(HybridConfig, shuffle_dataset=False, **{**OPTIONS, **options})
    data = {"train_dataset": demonstrations(8), "reward_funcs": parity, "rollout_func": ragged_rollout}
    trained(HybridTrainer, tiny, args, **data)
    assert (merged(tmp_path / "full" / "whole") - merged(Path(args.output_dir))).abs().max() <= 1e-5


def test_zero_3_does_too_and_merges_what_is_spread(tiny, tmp_path):
    options, refused = {"optimizer": "adamw_8bit"}, {"merge_average": 0.5}
    run(3, tiny, tmp_path, options=options, refused=refused, lora=[False, True])
    start = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    for kind, groups in (("full", 4), ("lora", 3)):  # no adapter is without decay
        result = check(tmp_path / kind, "bitsandbytes", groups)
        assert result["refused"].startswith("merge_average: not under ZeRO-3 or FSDP")
        now = AutoModelForCausalLM.from_pretrained(tmp_path / kind / "whole" / f"merged-{STEPS}").state_dict()
        changed = {name for name, tensor in now.items() if not torch.equal(tensor, start[name])}
        assert changed
        if kind == "lora":
            assert all("q_proj" in name or "v_proj" in name for name in changed)
