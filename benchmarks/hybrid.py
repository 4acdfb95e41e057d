"""Accuracy of the ways to mix demonstrations and rewards, at equal numbers of optimizer steps, on the built-in task.

    python -m benchmarks.hybrid                                    all of them, 51 runs of about half a minute
    python -m benchmarks.hybrid --modes joint gate --seeds 0       some of them, into the same result
    python -m benchmarks.hybrid --demonstrations correct           with demonstrations that are right

The six modes of `HybridTrainer`, and three baselines: SFT alone (TRL's `SFTTrainer`), RL alone (`PPOTrainer`), and one
after the other with an optimizer and a schedule each. All start from the tiny model of recipes/hybrid.yaml, which is
fitted to demonstrations of which half are wrong, and have its options: PPO on an exact answer, 240 prompts a batch,
each batch trained on twice. Every arm takes its prompts and its demonstrations from the same rows.

By construction half of the demonstrations are wrong, so that imitation ends near an accuracy of one half. That favours
RL; --demonstrations correct asks the question again with right ones, from the same start.

Each run is a process of its own. Its result is appended to --output; a run that is there already with the same settings
is skipped, so that a benchmark that was stopped goes on. A call with the default sizes and without --output adds to the
result that the project shows: results/hybrid.json, hybrid.png, and the table in benchmarks/README.md.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, write_table

ROOT = Path(__file__).parents[1]
RESULT = RESULTS / "hybrid.json"
SIZES = {"steps": 300, "start_steps": 900, "per_problem": 64}
DEMONSTRATIONS = {"half_wrong": 0.5, "correct": 0.0}  # the share that is wrong

# The options of each arm for n steps in all. A third of the steps are on demonstrations where the mode lets one say so.
MODES: dict[str, Any] = {
    "alternate": lambda n: {"mode": "alternate", "sft_steps": 1},
    "curriculum": lambda n: {"mode": "curriculum", "rl_share_start": 1 / 3, "rl_share_end": 1.0},
    "sequential": lambda n: {"mode": "sequential", "sft_steps": n // 3},
    "joint": lambda n: {"mode": "joint"},
    "gate": lambda n: {"mode": "gate"},
    "buffer": lambda n: {"mode": "buffer"},
}
BASELINES = {
    "sft_only": "SFT alone",
    "rl_only": "RL alone",
    "sft_then_rl": "SFT, then RL: two trainers",
}
ARMS = (*MODES, *BASELINES)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hybrid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--modes", nargs="+", choices=ARMS, default=list(ARMS), metavar="MODE", help=", ".join(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument(
        "--demonstrations",
        nargs="+",
        choices=DEMONSTRATIONS,
        default=list(DEMONSTRATIONS),
        help="half_wrong, correct or both (default: both)",
    )
    helps = {
        "steps": "optimizer steps of each run",
        "start_steps": "steps that the start is fitted with",
        "per_problem": "demonstrations of each of the 240 problems",
    }
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"{helps[name]} (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="the result, see above; else in --work")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "hybrid", help="for the starts (default: %(default)s)"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.steps < 6 or args.start_steps < 1 or args.per_problem < 1:
        parser.error("--steps must be 6 or more, --start_steps and --per_problem 1 or more")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and write the result, its picture and its table."""
    args = parse(argv)
    if args.child:
        print(json.dumps(train(json.loads(args.child), args.work)))
        return
    from tqdm import tqdm

    sizes = {name: getattr(args, name) for name in SIZES}
    output = args.output or (RESULT if sizes == SIZES else args.work / "hybrid.json")
    wanted = [
        {"mode": mode, "demonstrations": kind, "seed": seed, **sizes}
        for kind in args.demonstrations
        for seed in args.seeds
        for mode in args.modes
        if not (mode == "rl_only" and kind == "correct" and "half_wrong" in args.demonstrations)  # it sees none
    ]
    with tqdm(wanted, file=sys.stderr) as bar:
        for settings in bar:
            bar.set_description(f"{settings['mode']}, {settings['demonstrations']}, seed {settings['seed']}")
            if not any(run["settings"] == settings for run in read(output)):
                append(output, {"settings": settings, **in_a_process(settings, args.work)})
    runs = [run for run in read(output) if sizes.items() <= run["settings"].items()]
    draw(runs, output.with_suffix(".png"))
    if output == RESULT:
        write_table("hybrid", table(runs))
    print(table(runs))


def read(path: Path) -> list[dict[str, Any]]:
    """The runs that have been made."""
    return json.loads(path.read_text())["runs"] if path.is_file() else []


def append(path: Path, run: dict[str, Any]) -> None:
    """Add a run to the file, which is replaced in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(one) for one in [*read(path), run])
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(f'{{"runs": [\n{lines}\n]}}\n')
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def in_a_process(settings: dict[str, Any], work: Path) -> dict[str, Any]:
    """
    Raises:
        SystemExit: the run failed; its last lines.
    """
    command = [sys.executable, "-m", "benchmarks.hybrid", "--work", str(work), "--child", json.dumps(settings)]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{settings} failed:\n{done.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def chosen(runs: list[dict[str, Any]], mode: str, kind: str) -> list[dict[str, Any]]:
    """The runs of an arm. RL alone sees no demonstration, so that its runs stand for both kinds."""
    of_mode = [run for run in runs if run["settings"]["mode"] == mode]
    return [run for run in of_mode if run["settings"]["demonstrations"] == kind or mode == "rl_only"]


def table(runs: list[dict[str, Any]]) -> str:
    """The result as a Markdown table: mean (lowest to highest) over the seeds."""
    kinds = [kind for kind in DEMONSTRATIONS if any(run["settings"]["demonstrations"] == kind for run in runs)]
    steps = runs[0]["settings"]["steps"]
    names = {"half_wrong": "half wrong", "correct": "right"}
    titles = ["trained on", "held out", "RL steps"]
    head = ["mode", *(f"{names[kind]}: {title}" for kind in kinds for title in titles), "seeds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for mode in ARMS:
        cells, seeds = [], 0
        for kind in kinds:
            found = chosen(runs, mode, kind)
            seeds = max(seeds, len(found))
            cells += [spread([run[split] for run in found]) for split in ("train", "heldout")]
            cells.append(f"{statistics.mean(run['rl_share'] for run in found):.0%}" if found else "")
        if seeds:
            lines.append(f"| {' | '.join([BASELINES.get(mode, f'`{mode}`'), *cells, str(seeds)])} |")
    start = "; ".join(
        f"{name} {spread([run[split] for run in runs])}"
        for name, split in (("trained on", "train_before"), ("held out", "heldout_before"))
    )
    said = f"Sampled accuracy after {steps} optimizer steps: mean (lowest to highest) over the seeds."
    return "\n".join([f"{said} At the start: {start}.", "", *lines])


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else ""


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """A dot for each run and a line for the mean of each arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = [mode for mode in ARMS if any(run["settings"]["mode"] == mode for run in runs)][::-1]
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(arms)), layout="constrained")
    FigureCanvasAgg(figure)
    names = {"train": "prompts trained on", "heldout": "held-out prompts"}
    for axis, split in zip(figure.subplots(1, 2, sharey=True), names, strict=True):
        for shift, color, kind, label in ((0.15, "C0", "half_wrong", "half wrong"), (-0.15, "C1", "correct", "right")):
            for place, mode in enumerate(arms):
                values = [run[split] for run in chosen(runs, mode, kind)]
                if values:
                    axis.plot([statistics.mean(values)] * 2, [place + shift - 0.13, place + shift + 0.13], color=color)
                axis.plot(values, [place + shift] * len(values), "o", color=color, markersize=4, alpha=0.6)
            axis.plot([], [], "o", color=color, label=f"demonstrations {label}")
        axis.set_yticks(range(len(arms)), [BASELINES.get(mode, mode) for mode in arms])
        axis.set_xlabel(f"sampled accuracy, {names[split]}", fontsize="small")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize="small"
    )
    figure.savefig(path, dpi=130)


# What follows runs in the processes of the runs.


def train(settings: dict[str, Any], work: Path) -> dict[str, Any]:
    """Train an arm, and measure it before and after as the recipes do: 8 completions for each problem."""
    began, mode, steps = time.perf_counter(), settings["mode"], settings["steps"]
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from trl_ext import HybridConfig, HybridTrainer, PPOConfig, PPOTrainer
    from trl_ext.builtin.arithmetic import arithmetic_prompts, exact_answer

    start, rows, (train_set, heldout) = fitted_start(settings, work), demonstrations(settings), arithmetic_prompts()
    model = AutoModelForCausalLM.from_pretrained(start)
    sft_steps = {"sft_only": steps, "sft_then_rl": steps // 3}.get(mode, 0)

    def made(trainer_class: Any, config_class: Any, max_steps: int, **changes: Any) -> Any:
        args = recipe_options(config_class, settings["seed"], max_steps, **changes)
        data = {"train_dataset": rows, "processing_class": tokenizer(start)}
        rewards = {} if trainer_class is SFTTrainer else {"reward_funcs": exact_answer}
        return trainer_class(model=model, args=args, **data, **rewards)

    def measured(trainer: Any) -> list[float]:
        return [trainer.evaluate(split)["eval_reward"] for split in (train_set, heldout)]

    before = measured(made(PPOTrainer, PPOConfig, steps))
    model = AutoModelForCausalLM.from_pretrained(start)
    if sft_steps:
        made(SFTTrainer, SFTConfig, sft_steps).train()
    if mode in MODES:
        trainer = made(HybridTrainer, HybridConfig, steps, **MODES[mode](steps))
    else:
        trainer = made(PPOTrainer, PPOConfig, max(steps - sft_steps, 1))
    if sft_steps < steps:
        trainer.train()
    phases = [row["phase/rl"] for row in trainer.state.log_history if "phase/rl" in row]
    after = measured(trainer)
    names = ("train", "heldout", "train_before", "heldout_before")
    return {
        **{name: round(value, 4) for name, value in zip(names, [*after, *before], strict=True)},
        "rl_share": round(statistics.mean(phases) if phases else 1 - sft_steps / steps, 4),
        "seconds": round(time.perf_counter() - began, 1),
    }


def recipe_options(config_class: Any, seed: int, max_steps: int, **changes: Any) -> Any:
    """Those of recipes/hybrid.yaml that the class has. Every step is logged, and nothing saved."""
    from dataclasses import fields

    import yaml

    recipe = yaml.safe_load((ROOT / "recipes" / "hybrid.yaml").read_text())
    known = {field.name for field in fields(config_class)}
    own = {"output_dir": tempfile.mkdtemp(), "logging_steps": 1, "save_strategy": "no", "log_completions": False}
    own |= {"seed": seed, "max_steps": max_steps, "use_cpu": True, "disable_tqdm": True}
    options = {**recipe, **own, **changes}
    return config_class(**{name: value for name, value in options.items() if name in known})


def demonstrations(settings: dict[str, Any]) -> Any:
    """Rows with `prompt`, `completion` and the right `answer`."""
    from trl_ext.builtin.arithmetic import PROBLEMS, arithmetic_demonstrations

    wrong = DEMONSTRATIONS[settings["demonstrations"]]
    rows = arithmetic_demonstrations(settings["per_problem"], wrong, settings["seed"])
    answers = dict(PROBLEMS)
    return rows.add_column("answer", [answers[prompt] for prompt in rows["prompt"]])


def fitted_start(settings: dict[str, Any], work: Path) -> Path:
    """The folder of the tiny model that every arm of this seed starts from."""
    from trl_ext.builtin.arithmetic import arithmetic_demonstrations
    from trl_ext.builtin.tiny_model import fit_tiny_model

    seed, steps = settings["seed"], settings["start_steps"]
    folder = work / f"start-{steps}-{seed}"
    if not folder.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        fitting = Path(tempfile.mkdtemp(dir=work))
        fit_tiny_model(fitting, arithmetic_demonstrations(seed=seed), steps=steps, seed=seed)
        try:
            fitting.rename(folder)
        except OSError:  # another run was faster
            shutil.rmtree(fitting)
    return folder


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    main()
