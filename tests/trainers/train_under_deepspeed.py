"""Run by `accelerate launch`: train under DeepSpeed, go on from a checkpoint, and leave what came out. Takes a job."""

import json
import sys
from pathlib import Path

from peft import LoraConfig

from tests.ending import end_together
from tests.launching import without_deepspeeds_own_communication
from tests.trainers.training import config, demonstrations, load, make_trainer, parity, ragged_rollout
from trl_ext import HybridConfig, HybridTrainer
from trl_ext.errors import ConfigError


def train(job, lora):
    out, result = Path(job["out"]) / ("lora" if lora else "full"), {}

    def made(name, **options):
        options = {"per_device_train_batch_size": 4, "shuffle_dataset": False, **job["options"], **options}
        args = config(HybridConfig, **options)
        args.output_dir = str(out / name)  # the same on each process
        data = {"train_dataset": demonstrations(8), "reward_funcs": parity, "rollout_func": ragged_rollout}
        peft = {"peft_config": LoraConfig(target_modules=["q_proj", "v_proj"])} if lora else {}
        return make_trainer(HybridTrainer, job["path"], args, model=load(job["path"]), **data, **peft)

    if "refused" in job:
        try:
            made("refused", **job["refused"])
        except ConfigError as error:
            result["refused"] = str(error)
    whole = made("whole", save_strategy="steps", save_steps=2, merge_every=2)  # merging in between changes nothing
    whole.train()
    optimizer, kinds = whole.optimizer, []
    while optimizer is not None:
        kinds.append(f"{type(optimizer).__module__}.{type(optimizer).__name__}")
        optimizer = getattr(optimizer, "optimizer", None)
    resumed = made("resumed")
    resumed.train(resume_from_checkpoint=str(out / "whole" / "checkpoint-2"))
    result["optimizer"], result["groups"] = kinds, len(whole.optimizer.param_groups)
    for name, trainer in (("whole", whole), ("resumed", resumed)):
        trainer.save_model()
        result[name] = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    if whole.accelerator.is_main_process:
        (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    without_deepspeeds_own_communication()
    job = json.loads(sys.argv[1])
    for lora in job["lora"]:
        train(job, lora)
    end_together()
