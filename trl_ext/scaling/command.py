"""`trl-ext accelerate pick`: its options, and what it prints and writes."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_ext.errors import ConfigError, OutputDirError
from trl_ext.scaling.memory import GENERATION

TRAINERS = ("cispo", "ppo", "hybrid", "grpo")
EPILOG = """\
examples:
  trl-ext accelerate pick --model Qwen/Qwen2.5-7B-Instruct --gpus 8
  trl-ext accelerate pick --model ./my_model --gpus 4 --gpu_memory 24 --lora --trainer ppo
  trl-ext accelerate pick --model Qwen/Qwen2.5-72B --gpus 8 --nodes 4 --generation vllm_server
"""


def add_pick(actions: Any, config_of: Callable[[str], Any]) -> None:
    """Add the action; `config_of` gives the config of a model by its name."""
    summary = "estimate the memory of each strategy, choose one, write its config"
    pick = actions.add_parser(
        "pick",
        help=summary,
        description="Reads the config of a model, not its weights; estimates what a GPU needs under each strategy; "
        "chooses the one with the least communication that fits; writes its config and prints how to start it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options: list[tuple[str, dict[str, Any]]] = [
        ("--model", {"required": True, "help": "a model of the Hub, a folder, builtin:tiny or builtin:smollm2"}),
        ("--gpus", {"type": int, "default": 1, "help": "GPUs of a node (default: %(default)s)"}),
        ("--nodes", {"type": int, "default": 1, "help": "nodes (default: %(default)s)"}),
        ("--gpu_memory", {"type": float, "default": 80.0, "help": "GiB of a GPU (default: %(default)s)"}),
        ("--margin", {"type": float, "default": 0.1, "help": "share of it to leave free (default: %(default)s)"}),
        ("--trainer", {"choices": TRAINERS, "default": "cispo", "help": "what trains it (default: %(default)s)"}),
        ("--lora", {"action": "store_true", "help": "train a LoRA adapter on all linear layers"}),
        ("--lora_rank", {"type": int, "default": 16, "help": "its rank (default: %(default)s)"}),
        (
            "--max_length",
            {"type": int, "default": 4096, "help": "tokens of prompt and completion (default: %(default)s)"},
        ),
        ("--batch", {"type": int, "default": 4, "help": "per_device_train_batch_size (default: %(default)s)"}),
        (
            "--steps_per_generation",
            {"type": int, "default": 1, "help": "micro-batches that are generated at once (default: %(default)s)"},
        ),
        ("--optim", {"default": "adamw", "help": "a name that make_optimizer knows (default: %(default)s)"}),
        ("--dtype", {"choices": ("float32", "bfloat16"), "default": "float32", "help": "of the loaded weights"}),
        (
            "--reference",
            {"action": argparse.BooleanOptionalAction, "help": "a KL penalty (default: with ppo and hybrid)"},
        ),
        ("--value_model", {"choices": ("shared", "separate"), "default": "shared", "help": "the critic of ppo"}),
        ("--generation", {"choices": GENERATION, "default": "transformers", "help": "what writes the completions"}),
        ("--gradient_checkpointing", {"action": argparse.BooleanOptionalAction, "default": True, "help": "as in TRL"}),
        ("--output", {"metavar": "FILE.yaml", "help": "where the config goes (default: accelerate_STRATEGY.yaml)"}),
    ]
    for name, option in options:
        names = [name, name.replace("_", "-")] if "_" in name else [name]
        pick.add_argument(*names, **option)
    pick.set_defaults(run=lambda args: run_pick(args, config_of(args.model)))


def run_pick(args: argparse.Namespace, config: Any) -> None:
    """Print the table and write the config of the choice. Ends the program with what would fit where nothing does."""
    from trl_ext.scaling import pick as picking
    from trl_ext.scaling.configs import as_yaml
    from trl_ext.scaling.memory import Cluster, Job
    from trl_ext.scaling.shape import shape_of

    if args.lora and args.lora_rank < 1:
        raise ConfigError(f"--lora_rank = {args.lora_rank}: must be at least 1")
    has_values = args.trainer in ("ppo", "hybrid")
    job = Job(
        shape=shape_of(config),
        batch=args.batch,
        max_length=args.max_length,
        optimizer=picking.optimizer_state(args.optim),
        lora_rank=args.lora_rank if args.lora else 0,
        dtype=args.dtype,
        gradient_checkpointing=args.gradient_checkpointing,
        reference=picking.has_reference(args.trainer) if args.reference is None else args.reference,
        critic=args.value_model if has_values else None,
        logits=args.trainer == "hybrid",
        generation=args.generation,
        steps_per_generation=args.steps_per_generation,
    )
    cluster = Cluster(args.nodes, args.gpus, args.gpu_memory * picking.GIB)
    choice = picking.pick(job, cluster, args.margin)
    trained = f", {picking.trained_parameters(job) / 1e6:,.1f} M of them trained" if args.lora else ""
    print(
        f"{args.model}: {job.shape.parameters / 1e6:,.1f} M parameters{trained}; {cluster.gpus} x {args.gpu_memory:g} "
        f"GiB, of which {args.margin:.0%} are left free"
    )
    print(picking.table(choice, args.margin))
    if choice.strategy is None:
        found = picking.what_would_fit(job, cluster, args.margin)
        sys.exit("error: nothing fits. What would: " + ("; ".join(found) or "no single change of these options"))
    path = Path(args.output or f"accelerate_{choice.strategy}.yaml")
    try:
        path.write_text(as_yaml(choice.strategy, cluster))
    except OSError as error:
        raise OutputDirError(f"--output {str(path)!r} cannot be written: {error.strerror or error}") from None
    print(f"\n{choice.strategy}, written to {path}:\n")
    print(picking.launch_command(choice, str(path), args.model, args.trainer, args.optim))
    if caution := picking.caution(choice, args.optim):
        print(f"\n{caution}")
