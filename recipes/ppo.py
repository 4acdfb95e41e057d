r"""Train a language model with PPO: a value function, GAE and a KL penalty in the reward.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/ppo.py

With no arguments (recipes/ppo.yaml) it needs no hub and no GPU: it fits a tiny model to arithmetic demonstrations of
which half are wrong, then trains it on a verifier's reward, with one completion per prompt. On 2 CPU cores sampled
accuracy goes from 0.34 to 0.94 in 77 s (seed 42). Files in outputs/ppo/.

On SmolLM2-135M-Instruct with LoRA and a sentiment reward on chat prompts of several turns:

    accelerate launch recipes/ppo.py --config recipes/ppo_smollm2.yaml

On anything else:

    accelerate launch recipes/ppo.py --model_name_or_path Qwen/Qwen2.5-1.5B-Instruct \
        --dataset_name my_prompts.jsonl --reward recipes/rewards/exact_answer.json --use_peft true \
        --output_dir outputs/mine

Options are those of PPOConfig, TRL's ModelConfig and the first group below; a YAML of them goes in with --config, and
the command line wins over it. With --resume_from_checkpoint auto the same command goes on where a run was stopped or
killed, or starts one (docs/resilience.md).
"""

import time
from pathlib import Path

from trl import get_peft_config, get_quantization_config

from trl_ext import PPOConfig, PPOTrainer
from trl_ext.recipe import RunReport, load_task, one_line_errors, parse_recipe_args
from trl_ext.rewards import RewardStateCallback


def main() -> None:
    started = time.perf_counter()
    recipe_args, training_args, model_args = parse_recipe_args(
        PPOConfig, default_config=Path(__file__).with_name("ppo.yaml"), description=__doc__
    )
    task = load_task(recipe_args, model_args, training_args)

    trainer = PPOTrainer(
        model=task.model,
        reward_funcs=task.reward_funcs,
        args=training_args,
        train_dataset=task.train_dataset,
        eval_dataset=task.heldout_dataset if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        callbacks=[RewardStateCallback(task.reward_funcs)],
    )

    report = RunReport(trainer, task, title=f"PPO, {model_args.model_name_or_path}", started=started)
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
