"""How the time and the memory of a step grow with the completion length, the group size and the number of rewards.

    python -m benchmarks.cost                        about 3 minutes on 2 cores
    python -m benchmarks.cost --steps 2              a try
    python -m benchmarks.cost --device cuda --dtype bfloat16 --hidden_size 896 --layers 24 --vocabulary 151936 \\
        --output cost_cuda.json

`CISPOTrainer` beside TRL's `GRPOTrainer(loss_type="cispo")`. A step samples completions for 4 prompts, scores them and
trains on them once, in micro-batches of 8. One of the three grows at a time, the others are 64 tokens, 8 completions
for each prompt and 1 reward. Every completion has the full length and every group has variance, so that lean updates
have nothing to gain. A reward compresses the text of each completion.

Each point is a process of its own. Time is the median over the steps after the first; memory is the peak of the process
beyond what it had before the model was made (on a GPU, of allocated memory).

The result goes to --output as JSON. A run on the CPU with the default sizes and without --output becomes the result
that the project shows: results/cost.json, the picture beside it, and the table in benchmarks/README.md.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from benchmarks.ppo_vs_trl112 import make_tokenizer
from benchmarks.processes import one_process_each
from benchmarks.rewards import machine
from benchmarks.tables import RESULTS, write_result
from benchmarks.update import device_name, random_llama

RESULT = RESULTS / "cost.json"
PROMPTS, PROMPT_TOKENS, MICRO_BATCH = 4, 16, 8
BASE = {"completion_length": 64, "group_size": 8, "rewards": 1}
SWEEPS = {"completion_length": (32, 64, 128, 256), "group_size": (2, 4, 8, 16), "rewards": (1, 4, 16, 64)}
SIDES = {"trl": "TRL", "cispo": "trl-ext"}
SIZES = {"hidden_size": 128, "layers": 2, "vocabulary": 4000, "steps": 6}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where the result goes, see above")
    args = parser.parse_args(argv)
    if args.steps < 2:
        parser.error("--steps must be 2 or more: the first is not counted")
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the result, its table and its picture."""
    args = parse(argv)
    from tqdm import tqdm

    points = [BASE | {name: value} for name, values in SWEEPS.items() for value in values]
    points = [point for number, point in enumerate(points) if point not in points[:number]]
    jobs = [(side, point, args) for point in points for side in SIDES]
    measured: list[dict[str, Any]] = [{**point} for point in points]
    with one_process_each() as pool, tqdm(total=len(jobs), file=sys.stderr) as bar:
        for number, found in enumerate(pool.imap(measure, jobs)):
            measured[number // len(SIDES)][jobs[number][0]] = found
            bar.update()
    settings = {name: getattr(args, name) for name in SIZES} | {"dtype": args.dtype}
    result = {"machine": machine() | {"device": device_name(args.device)}, "settings": settings, "points": measured}
    shown = (RESULT, "cost") if args == parse([]) else None
    output = write_result(result, table(result), args.output, shown)
    if output is not None:
        draw(result, output.with_suffix(".png"))


def sweep(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The points at which `name` grows and the others do not."""
    rest = [other for other in BASE if other != name]
    points = [point for point in result["points"] if all(point[other] == BASE[other] for other in rest)]
    return sorted(points, key=lambda point: point[name])


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    machine, settings = result["machine"], result["settings"]
    on_gpu = machine["device"] != "cpu"
    where = machine["device"] if on_gpu else f"{machine['cpu_cores']} CPU cores"
    lines = [
        f"{where}, torch {machine['torch']}, transformers {machine['transformers']}; a Llama of {settings['layers']} "
        f"layers of {settings['hidden_size']} with {settings['vocabulary']:,} tokens, {settings['dtype']}.",
        "",
        "| what grows | | step, TRL | trl-ext | peak memory, TRL | trl-ext |",
        "|" + "---|" * 6,
    ]
    for name in SWEEPS:
        for point in sweep(result, name):
            cells = [name.replace("_", " "), str(point[name])]
            cells += [f"{statistics.median(point[side]['seconds']):.3f} s" for side in SIDES]
            cells += [f"{point[side]['mib']:.0f} MiB" for side in SIDES]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Seconds above, memory below; a panel for each of what grows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(SWEEPS), sharex="col", sharey="row")
    for column, name in enumerate(SWEEPS):
        points = sweep(result, name)
        places = [point[name] for point in points]
        for (side, label), color in zip(SIDES.items(), ("#9aa5b1", "#1f77b4"), strict=True):
            seconds = [statistics.median(point[side]["seconds"]) for point in points]
            axes[0][column].plot(places, seconds, "o-", color=color, label=label)
            axes[1][column].plot(places, [point[side]["mib"] for point in points], "o-", color=color)
        axes[1][column].set_xscale("log", base=2)
        axes[1][column].set_xticks(places, [str(place) for place in places])
        axes[1][column].set_xlabel(name.replace("_", " "))
    axes[0][0].set_ylabel("seconds of a step")
    axes[1][0].set_ylabel("peak memory, MiB")
    for axis in axes.flat:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


# What follows runs in the processes that are measured.


def measure(job: tuple[str, dict[str, int], argparse.Namespace]) -> dict[str, Any]:
    """Seconds of each step but the first, and MiB."""
    side, point, args = job
    before = peak_mib(args.device)
    model = random_llama(args.hidden_size, args.layers, args.vocabulary, args.dtype)
    trainer = make_trainer(side, model, args, **point)
    clock = add_clock(trainer, args.device)
    trainer.train()
    return {
        "seconds": [round(seconds, 4) for seconds in clock.seconds[1:]],
        "mib": round(peak_mib(args.device) - before, 1),
    }


def peak_mib(device: str) -> float:
    """Of this process so far."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def make_trainer(
    side: str,
    model: Any,
    args: argparse.Namespace,
    completion_length: int,
    group_size: int,
    rewards: int = 1,
    prompts: int = PROMPTS,
    micro_batch: int = MICRO_BATCH,
) -> Any:
    """One that samples completions of full length for so many prompts, and trains on them once, in each step."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from trl_ext import CISPOConfig, CISPOTrainer

    vocabulary = model.config.vocab_size
    words = [f"w{2 + i * 7919 % (vocabulary - 2)}" for i in range(64 * PROMPT_TOKENS)]
    texts = [" ".join(words[i : i + PROMPT_TOKENS]) for i in range(0, len(words), PROMPT_TOKENS)]
    options = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": prompts * group_size // micro_batch,
        "num_generations": group_size,
        "max_completion_length": completion_length,
        "generation_kwargs": {"suppress_tokens": [0, 1]},
        "learning_rate": 1e-6,
        "max_steps": args.steps,
        "use_cpu": args.device == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    if side == "cispo":
        trainer_class, config = CISPOTrainer, CISPOConfig(**options)
    else:
        trainer_class, config = GRPOTrainer, GRPOConfig(loss_type="cispo", epsilon_high=5.0, **options)
    trainer = trainer_class(
        model=model,
        reward_funcs=[compressed_size(number) for number in range(rewards)],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=make_tokenizer(argparse.Namespace(vocabulary=vocabulary)),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def compressed_size(number: int) -> Any:
    def reward(completions: list[str], **columns: Any) -> list[float]:
        return [len(zlib.compress(f"{number} {text}".encode())) / max(len(text), 1) for text in completions]

    reward.__name__ = f"compressed_{number}"
    return reward


def add_clock(trainer: Any, device: str) -> Any:
    """A callback whose `seconds` are those of each optimizer step."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.start)

    clock = Clock()
    trainer.add_callback(clock)
    return clock


if __name__ == "__main__":
    main()
