r"""Train a model on episodes of many turns in an environment, with CISPO, PPO or GRPO.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/agent.py

With no arguments (recipes/agent.yaml) it needs no hub and no GPU: it fits a tiny model to walks in a 4x4 grid of which
half of the steps are sure to lead closer to the goal, then trains it on the environment's rewards. `--trainer ppo`
(recipes/agent_ppo.yaml) gives each turn its own reward. Success goes from 0.14-0.21 to 0.97-1.00 with either, in 100 to
240 s on a busy machine of 2 CPU cores (seeds 42, 0, 1). Episodes are in outputs/agent/trajectories: `trl-ext
trajectories stats` and `show` read them.

SmolLM2-135M-Instruct with LoRA searches a mailbox or plays 2048, both far too hard for it (recipes/agent_smollm2.yaml):

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/agent.py --env game_2048 --max_steps 2

--report_to wandb, tensorboard or trackio logs there too: to W&B with tables of episodes and actions. With Langfuse's
keys in the environment (LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY, LANGFUSE_BASE_URL) each episode is a trace there.

With `--serve HOST:PORT` the episodes are played elsewhere, by `trl-ext worker` and by agents with an OpenAI client, and
http://HOST:PORT/ shows the run (docs/serving.md):

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/agent.py --serve 127.0.0.1:8000
    trl-ext worker --server http://127.0.0.1:8000 --env grid_world --env_options '{"min_distance": 5}' --concurrency 64

Options are those of the trainer's config, TRL's ModelConfig and the first group below; a YAML of them goes in with
--config, and the command line wins over it. --resume_from_checkpoint auto goes on where a run was stopped or
killed.
"""

import gc
import sys
import time
from pathlib import Path

from trl import get_peft_config, get_quantization_config

from trl_ext import CISPOConfig, CISPOTrainer, PPOConfig, PPOTrainer
from trl_ext.agents.trajectory import TrajectoryRecorder
from trl_ext.recipe import RunReport, one_line_errors, parse_recipe_args
from trl_ext.recipe.agent_rollout import agent_rollout
from trl_ext.recipe.agent_task import AgentArguments, chosen_trainer, default_config, load_agent_task
from trl_ext.recipe.tracking import episode_trackers
from trl_ext.trainers.rollouts import RolloutsMixin
from trl_ext.trainers.rollouts_config import RolloutsConfig

TRAINERS = {
    "cispo": (CISPOTrainer, CISPOConfig),
    "ppo": (PPOTrainer, PPOConfig),
    "grpo": (RolloutsMixin, RolloutsConfig),  # GRPOTrainer, with the dataset's rows for the episodes
}


def main() -> None:
    started = time.perf_counter()
    name = chosen_trainer(sys.argv[1:], list(TRAINERS))
    trainer_class, config_class = TRAINERS[name]
    config = Path(__file__).with_name(default_config(sys.argv[1:], name))
    agent_args, training_args, model_args = parse_recipe_args(
        config_class, config, __doc__, arguments_class=AgentArguments
    )
    trackers = episode_trackers(training_args)
    recorders = [TrajectoryRecorder(Path(training_args.output_dir) / "trajectories"), *trackers]
    with agent_rollout(agent_args, str(model_args.model_name_or_path), recorders) as rollout:
        task = load_agent_task(agent_args, model_args, training_args)
        trainer = trainer_class(
            model=task.model,
            reward_funcs=task.reward_funcs,
            args=training_args,
            train_dataset=task.train_dataset,
            eval_dataset=task.heldout_dataset if training_args.eval_strategy != "no" else None,
            rollout_func=rollout,
            callbacks=trackers,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )

        title = f"{name.upper()}, {model_args.model_name_or_path} on {agent_args.environment}"
        report = RunReport(trainer, task, title=title, started=started)
        report.measure("before")
        if agent_args.serve:
            gc.freeze()  # each full collection of what is there by now would stop the server for 0.3 s
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        report.measure("after")
        trainer.save_model()
        report.finish()
        if training_args.push_to_hub:
            trainer.push_to_hub()


if __name__ == "__main__":
    with one_line_errors():
        main()
