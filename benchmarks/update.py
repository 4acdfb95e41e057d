"""How long an update takes: TRL's `GRPOTrainer(loss_type="cispo")` with `LeanUpdateMixin` and without, on the same
recorded rollouts.

    python -m benchmarks.update                                      everything, about 6 minutes on 2 cores
    python -m benchmarks.update --rounds 1 --hidden_size 32          a try
    python -m benchmarks.update --device cuda --dtype bfloat16 --hidden_size 896 --layers 24 --vocabulary 151936 \\
        --output update_cuda.json

A step is a batch of 80 completions (10 prompts, 8 each) in 10 micro-batches of 8, and its time is that of the whole
optimizer step: completions and rewards are replayed, which takes next to none of it. Completions have lengths of one of
three profiles: heavy-tailed (mean 127, most 512 tokens), uniform (up to 256) or nearly constant (120 to 128); of the
groups 0, 40 or 80% have no variance in their rewards, whatever their lengths. Both trainers are made and run a step;
then they take turns, and which of them begins changes from round to round. In the end their weights must be the same,
or the run stops (in float32). Padded tokens are counted at the model's door.

The result is the median over the rounds. It goes to --output as JSON. A run on the CPU with the default sizes and
without --output becomes the result that the project shows: results/update.json, the picture beside it, and the table
in benchmarks/README.md.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ppo_vs_trl112 import make_tokenizer
from benchmarks.rewards import machine
from benchmarks.tables import RESULTS, write_result

RESULT = RESULTS / "update.json"
GROUP, GROUPS = 8, 10
PROFILES = ("heavy-tailed", "uniform", "nearly constant")
ZERO_VARIANCE = (0, 40, 80)  # percent
SIZES = {"hidden_size": 128, "layers": 2, "vocabulary": 1000, "rounds": 9}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.update", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=list(PROFILES), metavar="PROFILE")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where the result goes, see above")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the result, its table and its picture."""
    args = parse(argv)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is how rollouts are replayed
    from tqdm import tqdm

    cases = [(profile, percent) for profile in args.profiles for percent in ZERO_VARIANCE]
    with tqdm(total=len(cases) * args.rounds, file=sys.stderr) as bar:
        rows = [measure(*case, args, bar) for case in cases]
    settings = {name: getattr(args, name) for name in SIZES} | {"dtype": args.dtype}
    result = {"machine": machine() | {"device": device_name(args.device)}, "settings": settings, "cases": rows}
    shown = (RESULT, "update") if args == parse([]) else None
    output = write_result(result, table(result), args.output, shown)
    if output is not None:
        plot(result, output.with_suffix(".png"))


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def lengths(profile: str) -> list[int]:
    """Of the completions of a batch."""
    draw = random.Random(0)
    if profile == "uniform":
        return [draw.randint(16, 256) for _ in range(GROUPS * GROUP)]
    if profile == "nearly constant":
        return [draw.randint(120, 128) for _ in range(GROUPS * GROUP)]
    return [512, *(min(round(draw.lognormvariate(4.48, 0.9)), 512) for _ in range(GROUPS * GROUP - 1))]


def measure(profile: str, percent: int, args: argparse.Namespace, bar: Any) -> dict[str, Any]:
    """Seconds, padded tokens and on a GPU memory of each round, for each trainer.

    Raises:
        SystemExit: the trainers end with other weights.
    """
    names = ["trl", "lean"]
    bar.set_description(f"{profile}, {percent}% without variance")
    trainers = {name: make(name, profile, percent, args) for name in names}
    for trainer in trainers.values():
        trainer.train()
        trainer.measured.clear()
    for number in range(args.rounds):
        for name in names if number % 2 else names[::-1]:
            trainers[name].train()
        bar.update()
    apart = largest_difference(trainers["lean"], trainers["trl"])
    if args.dtype == "float32" and apart > 1e-4:
        raise SystemExit(f"{profile}, {percent}%: the weights are {apart:.1e} of their size apart")
    found: dict[str, Any] = {"profile": profile, "zero_variance_percent": percent}
    found |= {"mean_length": round(statistics.mean(lengths(profile)), 1), "longest": max(lengths(profile))}
    for key, digits in (("seconds", 4), ("padded_tokens", 0), ("peak_mib", 1)):
        found[key] = {
            name: [round(step[key], digits or None) for step in trainer.measured] for name, trainer in trainers.items()
        }
    return found | {"weights_apart": float(f"{apart:.1g}")}


def largest_difference(one: Any, other: Any) -> float:
    """Between parameters of two trainers, over the largest size of any."""
    pairs = list(zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True))
    return max(float((a - b).abs().max()) for a, b in pairs) / max(float(b.abs().max()) for _, b in pairs)


def make(name: str, profile: str, percent: int, args: argparse.Namespace, steps: int = 1) -> Any:
    """A trainer that runs `steps` each time its `train` is called, and keeps what each took in `measured`.

    Its `name`: TRL's "trl", "lean" or "tiles" (with small tiles for the LM head), or "cispo" without lean updates.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from trl_ext import CISPOConfig, CISPOTrainer
    from trl_ext.trainers.head_tiles import HeadTilesMixin
    from trl_ext.trainers.lean_update import LeanUpdateMixin

    draw, lengths_of = random.Random(1), lengths(profile)
    prompts = [[draw.randrange(2, args.vocabulary) for _ in range(draw.randint(16, 32))] for _ in range(GROUPS)]
    completions = [[*(draw.randrange(2, args.vocabulary) for _ in range(n - 1)), 1] for n in lengths_of]
    flat = {number: percent / 100 > place / GROUPS for place, number in enumerate(draw.sample(range(GROUPS), GROUPS))}
    texts = [" ".join(f"w{token}" for token in ids) for ids in prompts]

    def replay(asked: list[str], trainer: Any) -> dict[str, Any]:
        groups = [texts.index(text) for text in asked[::GROUP]]
        ids = [completions[group * GROUP + i] for group in groups for i in range(GROUP)]
        return {
            "prompt_ids": [prompts[group] for group in groups for _ in range(GROUP)],
            "completion_ids": ids,
            "logprobs": [[0.0] * len(each) for each in ids],
        }

    def reward(prompts: list[str], **columns: Any) -> list[float]:
        return [0.5 if flat[texts.index(text)] else float(i % 2) for i, text in enumerate(prompts)]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if args.device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            self.tokens, self.start = 0, time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step: dict[str, float] = {"peak_mib": 0.0}
            if args.device == "cuda":
                torch.cuda.synchronize()
                step["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
            trainer.measured.append(step | {"seconds": time.perf_counter() - self.start, "padded_tokens": self.tokens})

        def count(self, model: Any, inputs: Any, named: dict[str, Any]) -> None:
            self.tokens += named["input_ids"].numel()

    model = random_llama(args.hidden_size, args.layers, args.vocabulary, args.dtype)
    options = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": GROUP,
        "gradient_accumulation_steps": GROUPS,
        "num_generations": GROUP,
        "max_completion_length": max(lengths_of),
        "learning_rate": 1e-4,
        "max_steps": steps,
        "use_cpu": args.device == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }

    class Lean(LeanUpdateMixin, GRPOTrainer):
        pass

    class Tiles(HeadTilesMixin, GRPOTrainer):
        pass

    clock = Clock()
    trainer = {"trl": GRPOTrainer, "lean": Lean, "tiles": Tiles, "cispo": CISPOTrainer}[name](
        model=model,
        reward_funcs=reward,
        args=CISPOConfig(lean_update=False, **options)
        if name == "cispo"
        else GRPOConfig(loss_type="cispo", epsilon_high=5.0, **options),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=make_tokenizer(args),
        rollout_func=replay,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.measured = []
    model.register_forward_pre_hook(clock.count, with_kwargs=True)
    return trainer


def random_llama(hidden_size: int, layers: int, vocabulary: int, dtype: str, **options: Any) -> Any:
    """With tied embeddings; 0 is its padding and 1 its end of sequence, as in `make_tokenizer`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    own = {"intermediate_size": 4 * hidden_size, "num_attention_heads": max(2, hidden_size // 64)}
    sizes = {"hidden_size": hidden_size, "num_hidden_layers": layers, "vocab_size": vocabulary}
    config = LlamaConfig(**sizes, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, **{**own, **options})
    return LlamaForCausalLM(config).to(getattr(torch, dtype))


def median(case: dict[str, Any], key: str, name: str) -> float:
    return statistics.median(case[key][name])


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    machine, settings = result["machine"], result["settings"]
    on_gpu = machine["device"] != "cpu"
    where = machine["device"] if on_gpu else f"{machine['cpu_cores']} CPU cores"
    lines = [
        f"{where}, torch {machine['torch']}, transformers {machine['transformers']}; a Llama of {settings['layers']} "
        f"layers of {settings['hidden_size']}, {settings['dtype']}; medians of {settings['rounds']} steps or more.",
        "",
        "| lengths | mean | longest | no variance | padded tokens, TRL | lean | step, TRL | lean | times faster |"
        + (" peak MiB, TRL | lean |" if on_gpu else ""),
        "|" + "---|" * (11 if on_gpu else 9),
    ]
    for case in result["cases"]:
        seconds, tokens, memory = (
            [median(case, key, name) for name in ("trl", "lean")] for key in ("seconds", "padded_tokens", "peak_mib")
        )
        cells = [
            case["profile"],
            f"{case['mean_length']:.0f}",
            str(case["longest"]),
            f"{case['zero_variance_percent']}%",
        ]
        cells += [f"{count:,.0f}" for count in tokens] + [f"{second:.3f} s" for second in seconds]
        cells += [f"{seconds[0] / seconds[1]:.2f}"] + ([f"{mib:.0f}" for mib in memory] if on_gpu else [])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Bars: the seconds of a step, by profile and share of groups without variance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    profiles = list(dict.fromkeys(case["profile"] for case in result["cases"]))
    figure = Figure(figsize=(4 * len(profiles), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, profile in zip(figure.subplots(1, len(profiles), squeeze=False)[0], profiles, strict=True):
        cases = [case for case in result["cases"] if case["profile"] == profile]
        for shift, (name, label, color) in enumerate((("trl", "TRL", "#9aa5b1"), ("lean", "lean", "#1f77b4"))):
            places = [i + 0.4 * shift - 0.2 for i in range(len(cases))]
            axes.bar(places, [median(case, "seconds", name) for case in cases], 0.38, label=label, color=color)
        for i, case in enumerate(cases):
            seconds = median(case, "seconds", "lean")
            axes.text(i + 0.2, seconds, f"{median(case, 'seconds', 'trl') / seconds:.1f}x", ha="center", va="bottom")
        axes.set_xticks(range(len(cases)), [f"{case['zero_variance_percent']}%" for case in cases])
        axes.set_xlabel("groups without variance")
        axes.set_title(f"{profile}: mean {cases[0]['mean_length']:.0f}, longest {cases[0]['longest']}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds of an update")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
