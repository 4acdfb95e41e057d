"""Estimated against measured peaks of GPU memory: a few optimizer steps of `CISPOTrainer` with random weights.

One strategy a run, that of the config it is launched with:

    export C=accelerate_configs
    accelerate launch --config_file $C/gpu_1.yaml -m benchmarks.memory --model HuggingFaceTB/SmolLM2-135M
    accelerate launch --config_file $C/zero3_8gpu.yaml -m benchmarks.memory --model Qwen/Qwen2.5-7B --lora

Only the model's config is read. The rollouts are fixed, every completion as long as it can be; so what generation takes
is not measured, and left out of the estimate. Not run so far: there was no GPU at hand.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset

from trl_ext.cli import config_of
from trl_ext.scaling.memory import Cluster, Estimate, Job, estimate
from trl_ext.scaling.pick import GIB, optimizer_state
from trl_ext.scaling.shape import shape_of

PROMPT = 16  # tokens
GOAL = 0.15


def strategy_of(state: Any) -> str:
    """The strategy of `memory.STRATEGIES` that an accelerator's state stands for."""
    kind = state.distributed_type.value
    if kind == "DEEPSPEED":
        plugin = state.deepspeed_plugin
        if plugin.zero_stage == 2:
            return "zero2"
        if plugin.hf_ds_config.is_offload():
            return "zero3_offload"
        hierarchical = plugin.get_value("zero_optimization.zero_hpz_partition_size", 1) > 1
        return "zero3_hierarchical" if hierarchical else "zero3"
    return {"NO": "single", "MULTI_GPU": "ddp", "FSDP": "fsdp2"}[kind]


def full_length(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """A rollout whose completions are of the greatest length and have rewards that differ."""
    generator = torch.Generator().manual_seed(trainer.state.global_step)
    shape = (len(prompts), trainer.max_completion_length)
    ids = torch.randint(3, trainer.model.config.vocab_size, shape, generator=generator).tolist()
    return {
        "prompt_ids": [[5] * PROMPT for _ in prompts],
        "completion_ids": ids,
        "logprobs": [[0.0] * len(row) for row in ids],
    }


def line(found: Estimate, measured: float) -> str:
    error = found.total / measured - 1.0
    verdict = "within" if abs(error) <= GOAL else "beyond"
    return (
        f"{found.strategy:<20}estimated {found.total / GIB:8.2f} GiB   measured {measured / GIB:8.2f} GiB   "
        f"error {error:+.1%}, {verdict} {GOAL:.0%}"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model of the Hub, a folder, builtin:tiny or builtin:smollm2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--optim", default="adamw_torch")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--gradient_checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        sys.exit(
            "error: there is no GPU here, and nothing to measure; trl-ext accelerate pick gives the estimates alone"
        )
    config = config_of(args.model)
    trainer = make_trainer(config, args)
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    peaks = trainer.accelerator.gather(torch.tensor([torch.cuda.max_memory_allocated()], device="cuda"))
    accelerator = trainer.accelerator
    local = torch.cuda.device_count()
    cluster = Cluster(max(1, accelerator.num_processes // local), min(local, accelerator.num_processes))
    found = estimate(job_of(config, args), cluster, strategy_of(accelerator.state))
    if accelerator.is_main_process:
        print(line(found, peaks.max().item()))


def job_of(config: Any, args: argparse.Namespace) -> Job:
    """What `main` trains, as `pick` sees it; no completions are generated."""
    job = Job(shape_of(config), args.batch, args.max_length, optimizer_state(args.optim), 16 if args.lora else 0)
    return replace(job, gradient_checkpointing=args.gradient_checkpointing, generation="vllm_server")


def make_trainer(config: Any, args: argparse.Namespace, **options: Any) -> Any:
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    from trl_ext import CISPOConfig, CISPOTrainer
    from trl_ext.builtin.tiny_model import tiny_tokenizer

    group = min(args.batch, 4)
    training = CISPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=args.batch,
        num_generations=max(group, 2),
        max_completion_length=args.max_length - PROMPT,
        optim=args.optim,
        gradient_checkpointing=args.gradient_checkpointing,
        max_steps=args.steps,
        save_strategy="no",
        report_to=[],
        **options,
    )
    return CISPOTrainer(
        model=AutoModelForCausalLM.from_config(config, dtype=torch.float32),
        reward_funcs=lambda completion_ids, **columns: [float(sum(ids) % 7) for ids in completion_ids],
        args=training,
        train_dataset=Dataset.from_list([{"prompt": "+" * PROMPT}] * 256),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=16, target_modules="all-linear") if args.lora else None,
        rollout_func=full_length,
    )


if __name__ == "__main__":
    main()
