"""Plain TRL: GRPO with LoRA, the reference model being the same model with its adapter disabled. No trainer of ours.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo.py

With no arguments (recipes/grpo.yaml) it trains a LoRA adapter on the built-in tiny model and arithmetic task, with a KL
penalty. It stands beside recipes/cispo.py to show what dropping into a TRL pipeline means: the pipeline is TRL's, and
what changes from one file to the other is the name of the trainer and of its config.

Options are those of TRL's GRPOConfig and ModelConfig, and the first group below.
"""

import time
from pathlib import Path

from trl import GRPOConfig, GRPOTrainer, get_peft_config, get_quantization_config

from trl_ext.recipe import RunReport, load_task, one_line_errors, parse_recipe_args
from trl_ext.rewards import RewardStateCallback


def main() -> None:
    started = time.perf_counter()
    recipe_args, training_args, model_args = parse_recipe_args(
        GRPOConfig, default_config=Path(__file__).with_name("grpo.yaml"), description=__doc__
    )
    task = load_task(recipe_args, model_args, training_args)

    trainer = GRPOTrainer(
        model=task.model,
        reward_funcs=task.reward_funcs,
        args=training_args,
        train_dataset=task.train_dataset,
        eval_dataset=task.heldout_dataset if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        callbacks=[RewardStateCallback(task.reward_funcs)],
    )

    report = RunReport(trainer, task, title=f"GRPO, {model_args.model_name_or_path}", started=started)
    report.measure("before")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    report.measure("after")
    trainer.save_model()
    report.finish()
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=recipe_args.dataset_name)


if __name__ == "__main__":
    with one_line_errors():
        main()
