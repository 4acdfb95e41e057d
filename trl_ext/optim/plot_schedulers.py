"""The picture of all learning-rate curves: python -m trl_ext.optim.plot_schedulers docs/schedulers.png"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trl_ext.optim.options import Spec
from trl_ext.optim.schedulers import make_scheduler

STEPS = 200
WARMUP = 20

# What is drawn, with the options that differ from the defaults.
PANELS: tuple[dict[str, Any], ...] = (
    {"name": "linear"},
    {"name": "cosine"},
    {"name": "cosine_with_restarts", "num_cycles": 3},
    {"name": "cosine_with_min_lr"},
    {"name": "cosine_warmup_with_min_lr"},
    {"name": "polynomial", "power": 3},
    {"name": "inverse_sqrt", "timescale": 20},
    {"name": "warmup_stable_decay"},
    {"name": "constant"},
    {"name": "lambda", "lr_floor": 0.3},
    {"name": "step"},
    {"name": "multistep"},
    {"name": "exponential"},
    {"name": "cosineannealing"},
    {"name": "cosineannealing_warm_restarts"},
    {"name": "onecycle"},
    {"name": "cyclic"},
    {"name": "cyclic", "mode": "triangular2"},
    {"name": "reduce_on_plateau", "factor": 0.5},
    {"name": "greedy", "max_lr": 2.0},
)
BY_METRIC = ("reduce_on_plateau", "greedy")


def learning_rates(spec: Spec, steps: int = STEPS, warmup: int = 0) -> list[float]:
    """The learning rate of each step of a run, as a share of the optimizer's. Those that follow a metric are stepped
    with a loss that falls for the first half of the run and stays where it is."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer, spec, num_training_steps=steps, warmup_steps=warmup)
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([max(1 - step / steps, 0.5)] if hasattr(scheduler, "patience") else []))
    return rates


def plot_schedulers(path: str | Path) -> None:
    """Draw a panel per scheduler, without a warm-up and, dashed, with one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(PANELS) // columns)
    figure = Figure(figsize=(11, 1.75 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharex=True)
    for axis, spec in zip(grid.flat, PANELS, strict=True):
        if spec["name"] not in BY_METRIC:
            axis.plot(learning_rates(spec, warmup=WARMUP), "--", color="C1", linewidth=1.2)
        axis.plot(learning_rates(spec), color="C0", linewidth=1.4)
        options = "".join(f", {key}={value}" for key, value in spec.items() if key != "name")
        axis.set_title(f"{spec['name']}{options}", fontsize="small", loc="left")
        axis.set_ylim(0, 2.1 if spec["name"] == "greedy" else 1.05)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("optimizer step (of reduce_on_plateau and greedy: evaluation)", fontsize="medium")
    figure.supylabel("learning rate / the optimizer's", fontsize="medium")
    lines = [grid.flat[0].lines[1], grid.flat[0].lines[0]]
    figure.legend(lines, ["no warm-up", f"warmup_steps={WARMUP}"], loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the learning-rate curves of all schedulers.")
    parser.add_argument("path", help="where the picture goes: a .png file")
    plot_schedulers(parser.parse_args().path)
