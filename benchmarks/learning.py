"""Optimizer steps and rollouts to an accuracy, on the built-in task: CISPO, TRL's `grpo`, `dapo`, `dr_grpo`, and PPO.

    python -m benchmarks.learning                                       all, 130 runs, about an hour on 2 cores
    python -m benchmarks.learning --methods cispo dapo --updates 16     some of them, into the same result

All have the same prompts, batches and reward, and start from the same tiny model, which is fitted for each seed as the
recipes fit theirs. A batch of rollouts is cut into 8 or 16 mini-batches of 64 completions (8 for each of 8 prompts),
and each is trained on once, in an optimizer step of its own. So all but the first step of a batch are off-policy: the
"16 rounds of off-policy updates" of MiniMax-M1 (arXiv 2506.13585). The learning rate is constant, and there is no KL
penalty. `cispo` is `CISPOTrainer`, `ppo` is `PPOTrainer` with a value head (value_learning_rate 1e-2, vf_coef 0.1, lam
0.95) and the others are TRL's `GRPOTrainer`; `dr_grpo` leaves the rewards' scale alone, as its paper does.

Accuracy is the probability that the policy writes the right answer and ends, a mean over the 240 problems that are
trained on: what the accuracy of sampled completions is an estimate of, but without their noise. It is taken after every
4th step. A level is reached at the first of 4 measurements in a row that are not below it. A run ends when it has
reached the highest level, or after --steps steps.

Each method is tuned alone for each number of updates, with one run for each pair of 4 learning rates (1e-4, 2e-4, 4e-4,
8e-4) and 2 clips, on a seed that is not one of the five: for `cispo` weights of at most 2 or 5, for the others PPO's
0.2 or 0.2 and 0.28 (clip-higher). The pair that reaches the highest level first is taken; where none reaches it, the
next level counts, and in the end the best accuracy.

Each run has a process of its own, and its result is appended to --output; a run that is there already is skipped, so
that a benchmark that was stopped goes on. With the default sizes and without --output that is the result which the
project shows: results/learning.json, learning.png, and the table in benchmarks/README.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.hybrid import append, fitted_start, read
from benchmarks.processes import one_process_each
from benchmarks.tables import RESULTS, write_table

ROOT = Path(__file__).parents[1]
RESULT = RESULTS / "learning.json"
LEVELS = (0.6, 0.7, 0.8)
GROUP, MINI_BATCH = 8, 64  # completions
EVERY, HELD = 4, 4  # steps between measurements, and how many of them have to agree
SIZES = {"steps": 600, "start_steps": 900}
LEARNING_RATES = (1e-4, 2e-4, 4e-4, 8e-4)
TUNING_SEED = 100
CLIPPED = ("clip_ratio/region_mean", "cispo_clip_ratio")  # TRL's: the share of tokens that the clip acts on
CLIPS = {"cispo": (2.0, 5.0)} | dict.fromkeys(("grpo", "dapo", "dr_grpo", "ppo"), (0.2, 0.28))
METHODS = tuple(CLIPS)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--updates", nargs="+", type=int, choices=[8, 16], default=[8, 16], help="(default: 8 16)")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4], help="(default: 0 1 2 3 4)")
    parser.add_argument("--learning_rates", nargs="+", type=float, default=list(LEARNING_RATES), metavar="RATE")
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size, help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="the result, see above; else in --work")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "learning", help="for the starts (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.steps < EVERY * HELD or min(args.start_steps, args.jobs) < 1:
        parser.error(f"--steps must be {EVERY * HELD} or more, --start_steps and --jobs 1 or more")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and write the result, its picture and its table."""
    args = parse(argv)
    sizes = {name: getattr(args, name) for name in SIZES}
    shown = sizes == SIZES and args.learning_rates == list(LEARNING_RATES)
    output = args.output or (RESULT if shown else args.work / "learning.json")
    arms = [(method, updates) for updates in args.updates for method in args.methods]

    def settings(method: str, updates: int, seed: int, rate: float, clip: float) -> dict[str, Any]:
        where = {"method": method, "updates": updates, "seed": seed}
        return {**where, "learning_rate": rate, "clip": clip, **sizes}

    grid = [
        settings(*arm, TUNING_SEED, rate, clip)
        for rate in args.learning_rates
        for arm in arms
        for clip in CLIPS[arm[0]]
    ]
    run_missing(grid, output, args)
    chosen = {arm: tuned([run for run in read(output) if run["settings"] in grid], *arm) for arm in arms}
    run_missing([settings(*arm, seed, *chosen[arm]) for seed in args.seeds for arm in arms], output, args)
    runs = [run for run in read(output) if sizes.items() <= run["settings"].items()]
    draw(runs, output.with_suffix(".png"))
    if output == RESULT:
        write_table("learning", table(runs))
    print(table(runs))


def run_missing(wanted: list[dict[str, Any]], output: Path, args: argparse.Namespace) -> None:
    from tqdm import tqdm

    there = [run["settings"] for run in read(output)]
    missing = [(settings, args.work) for settings in wanted if settings not in there]
    with one_process_each(args.jobs) as pool, tqdm(total=len(missing), file=sys.stderr) as bar:
        for run in pool.imap_unordered(train, missing):
            append(output, run)
            bar.set_postfix_str(" ".join(f"{name} {value}" for name, value in run["settings"].items()), refresh=False)
            bar.update()


def tuned(runs: list[dict[str, Any]], method: str, updates: int) -> tuple[float, float]:
    """The learning rate and the clip of the tuning run that was best."""
    of_arm = [run for run in select(runs, method, updates) if run["settings"]["seed"] == TUNING_SEED]

    def order(run: dict[str, Any]) -> tuple[list[float], float]:
        return [float("inf") if step is None else step for step in run["reached"][::-1]], -max(run["accuracy"])

    best = min(of_arm, key=order)
    return best["settings"]["learning_rate"], best["settings"]["clip"]


def select(runs: list[dict[str, Any]], method: str, updates: int) -> list[dict[str, Any]]:
    return [run for run in runs if (run["settings"]["method"], run["settings"]["updates"]) == (method, updates)]


def first_held(accuracy: list[float], level: float) -> int | None:
    """The step of the first of HELD measurements in a row that are at least `level`; the first of all is of step 0."""
    for place in range(len(accuracy) - HELD + 1):
        if min(accuracy[place : place + HELD]) >= level:
            return place * EVERY
    return None


def rollouts(step: int, updates: int) -> int:
    """Completions that are sampled for so many steps: whole batches."""
    return -(-step // updates) * updates * MINI_BATCH


def finals(runs: list[dict[str, Any]], method: str, updates: int) -> list[dict[str, Any]]:
    """The runs of an arm that count: those of its tuned settings, on other seeds than it was tuned on."""
    rate, clip = tuned(runs, method, updates)
    wanted = {"learning_rate": rate, "clip": clip}
    of_arm = [run for run in select(runs, method, updates) if wanted.items() <= run["settings"].items()]
    return [run for run in of_arm if run["settings"]["seed"] != TUNING_SEED]


def arms_of(runs: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Those with runs that count."""
    tuning = {(run["settings"]["method"], run["settings"]["updates"]) for run in runs if is_tuning(run)}
    return [(m, u) for u in (8, 16) for m in METHODS if (m, u) in tuning and finals(runs, m, u)]


def is_tuning(run: dict[str, Any]) -> bool:
    return bool(run["settings"]["seed"] == TUNING_SEED)


def table(runs: list[dict[str, Any]]) -> str:
    """The result as a Markdown table: median over the seeds (lowest to highest, or how many of them got there)."""
    steps = runs[0]["settings"]["steps"]
    heads = [f"steps to {level}" for level in LEVELS] + [f"rollouts to {', '.join(map(str, LEVELS))}"]
    head = ["updates", "method", "learning rate", "clip", *heads, "clipped", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method, updates in arms_of(runs):
        found = finals(runs, method, updates)
        reached = list(zip(*(run["reached"] for run in found), strict=True))
        sampled = [[None if step is None else rollouts(step, updates) for step in level] for level in reached]
        cells = [str(updates), f"`{method}`", *(f"{value:g}" for value in tuned(runs, method, updates))]
        cells += [with_spread(level, steps) for level in reached]
        cells.append(", ".join(middle(level, rollouts(steps, updates)) for level in sampled))
        cells += [f"{100 * statistics.mean(run['clipped'] for run in found):.1f}%", str(len(found))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def middle(values: Sequence[int | None], limit: int) -> str:
    """The median, where a run that did not get there counts as later than all others."""
    median = statistics.median(float("inf") if value is None else value for value in values)
    return f"> {limit:,}" if median == float("inf") else f"{median:,.0f}"


def with_spread(values: Sequence[int | None], limit: int) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return f"none of {len(values)}"
    spread = f"{len(found)} of {len(values)}" if len(found) < len(values) else f"{min(found)} to {max(found)}"
    return f"{middle(values, limit)} ({spread})"


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Steps to each level: a dot for each seed, a line for the median; runs that did not get there on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms, limit = arms_of(runs), runs[0]["settings"]["steps"]
    if not arms:
        return
    numbers = list(dict.fromkeys(updates for _, updates in arms))
    figure = Figure(figsize=(4.6 * len(numbers) + 0.6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, updates in zip(figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0], numbers, strict=True):
        methods = [method for method in METHODS if (method, updates) in arms][::-1]
        for place, method in enumerate(methods):
            found = finals(runs, method, updates)
            for shift, color, level in zip((0.22, 0.0, -0.22), ("C0", "C1", "C2"), range(len(LEVELS)), strict=True):
                values = [run["reached"][level] for run in found]
                shown = [1.08 * limit if value is None else value for value in values]
                axis.plot(shown, [place + shift] * len(shown), "o", color=color, markersize=4.5, alpha=0.55)
                if (median := statistics.median(shown)) < limit:
                    axis.plot([median] * 2, [place + shift - 0.1, place + shift + 0.1], color=color, linewidth=2)
        for level, color in zip(LEVELS, ("C0", "C1", "C2"), strict=True):
            axis.plot([], [], "o", color=color, label=f"accuracy {level}")
        axis.axvspan(1.03 * limit, 1.13 * limit, color="0.92", zorder=0)
        axis.set(xlim=(0, 1.13 * limit), yticks=range(len(methods)), yticklabels=methods)
        ticks = [tick for tick in axis.get_xticks() if tick <= limit]
        axis.set_xticks([*ticks, 1.08 * limit], [*(f"{tick:.0f}" for tick in ticks), "not\nreached"])
        axis.set_xlabel("optimizer steps")
        axis.set_title(f"{updates} updates for each batch of rollouts", fontsize="medium")
        axis.grid(alpha=0.3, axis="x")
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(LEVELS), frameon=False)
    figure.savefig(path, dpi=120)


# What follows runs in the processes of the runs.


def train(job: tuple[dict[str, Any], Path]) -> dict[str, Any]:
    """Train as `settings` say, and measure the accuracy on the way."""
    began, (settings, work) = time.perf_counter(), job
    import torch
    from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
    from transformers.utils.logging import disable_progress_bar

    from trl_ext.builtin.arithmetic import arithmetic_prompts, exact_answer
    from trl_ext.builtin.tiny_model import tiny_tokenizer

    disable_progress_bar()
    torch.set_num_threads(1)
    problems = arithmetic_prompts()[0]
    rows, accuracy = answer_rows(problems), []

    class Measure(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step % EVERY == 0:
                accuracy.append(round(expected_accuracy(model, *rows), 4))
                control.should_training_stop |= first_held(accuracy, LEVELS[-1]) is not None

    model = AutoModelForCausalLM.from_pretrained(fitted_start(settings, work))
    accuracy.append(round(expected_accuracy(model, *rows), 4))
    trainer_class, args = trainer_of(settings, work)
    trainer = trainer_class(
        model=model,
        reward_funcs=exact_answer,
        args=args,
        train_dataset=problems,
        processing_class=tiny_tokenizer(),
        callbacks=[Measure],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    clips = [row[name] for row in trainer.state.log_history for name in CLIPPED if row.get(name) is not None]
    return {
        "settings": settings,
        "reached": [first_held(accuracy, level) for level in LEVELS],
        "accuracy": accuracy,
        "clipped": round(statistics.mean(clips), 4),
        "seconds": round(time.perf_counter() - began, 1),
    }


def answer_rows(problems: Any) -> tuple[Any, Any]:
    """Each problem with its answer and the end of the sequence: a model's inputs, and which tokens are answer."""
    from trl_ext.builtin.tiny_model import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    texts = [row["prompt"] + row["answer"] + tokenizer.eos_token for row in problems]
    rows = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    is_answer = rows["attention_mask"].bool()
    for row, problem in zip(is_answer, problems, strict=True):
        row[: len(problem["prompt"])] = False  # a token for each character
    return rows, is_answer


def expected_accuracy(model: Any, rows: Any, is_answer: Any) -> float:
    """The probability that a sampled completion is the answer and ends, a mean over the problems."""
    import torch

    training = model.training
    with torch.no_grad():
        logps = model.eval()(**rows).logits[:, :-1].log_softmax(-1)
    model.train(training)
    of_tokens = logps.gather(2, rows["input_ids"][:, 1:].unsqueeze(2)).squeeze(2)
    return float((of_tokens * is_answer[:, 1:]).sum(1).exp().mean())


def trainer_of(settings: dict[str, Any], work: Path) -> tuple[Any, Any]:
    """The class and its arguments."""
    from trl import GRPOConfig, GRPOTrainer

    from trl_ext import CISPOConfig, CISPOTrainer, PPOConfig, PPOTrainer
    from trl_ext.builtin.arithmetic import MAX_ANSWER_TOKENS

    method, clip = settings["method"], settings["clip"]
    common = {
        "output_dir": str(work / "nothing"),  # nothing is saved
        "per_device_train_batch_size": MINI_BATCH,
        "steps_per_generation": settings["updates"],
        "num_generations": GROUP,
        "max_completion_length": MAX_ANSWER_TOKENS,
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant",
        "max_steps": settings["steps"],
        "seed": settings["seed"],
        "logging_steps": settings["updates"],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": [],
        "save_strategy": "no",
    }
    if method == "cispo":
        return CISPOTrainer, CISPOConfig(importance_weight_max=clip, **common)
    common |= {"epsilon": 0.2, "epsilon_high": clip}
    if method == "ppo":
        value = {"value_learning_rate": 1e-2, "vf_coef": 0.1, "lam": 0.95, "kl_coef": 0.0}
        return PPOTrainer, PPOConfig(num_ppo_epochs=1, **value, **common)
    scale = "none" if method == "dr_grpo" else "group"
    return GRPOTrainer, GRPOConfig(loss_type=method, scale_rewards=scale, beta=0.0, **common)


if __name__ == "__main__":
    main()
