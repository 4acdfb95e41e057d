"""The picture of a run, drawn from its metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PANELS = {
    "reward": "mean reward",
    "sft/loss": "SFT loss",
    "sft/token_accuracy": "SFT accuracy",
    "phase/rl": "share of steps",
    "entropy": "entropy (nats)",
    "importance_weight/max": "largest weight",
    "val/explained_variance": "explained variance",
}


def plot_learning_curve(
    rows: Sequence[dict[str, Any]],
    path: str | Path,
    title: str = "",
    score_name: str = "reward",
    measured: dict[str, tuple[float, float]] | None = None,
    metric: str = "reward",
) -> None:
    """Draw the score per logged step, its moving average, and the panels that the run has metrics for.

    A hybrid run has the loss and the token accuracy of its steps on demonstrations, and a band of which part of the
    steps since the log before were on demonstrations and which on rewards.

    Args:
        rows: lines of a metrics file (`read_metrics`); in each panel those that have its metric.
        measured: per split, the score sampled before and after training; drawn at the two ends.
        metric: which metric the score is; where it is not the reward, the mean reward has a panel of its own. A run
            that never logged it is drawn by its reward.

    Does nothing for a run that logged no reward.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not any(row.get(metric) is not None for row in rows):
        metric, score_name = "reward", "reward"
    logged = [row for row in rows if row.get(metric) is not None]
    if not logged:
        return
    steps = [row["step"] for row in logged]
    panels = [name for name in PANELS if name != metric and any(row.get(name) is not None for row in rows)]
    figure = Figure(figsize=(7, 3.2 + 1.4 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1 + len(panels), 1, sharex=True, squeeze=False, height_ratios=[2.4, *[1.0] * len(panels)])[
        :, 0
    ]

    scores = [row[metric] for row in logged]
    axes[0].plot(steps, scores, color="C0", alpha=0.3, linewidth=1, label="sampled in training")
    axes[0].plot(steps, _moving_average(scores), color="C0", label="moving average")
    for color, (split, (before, after)) in zip(("C1", "C2"), (measured or {}).items(), strict=False):
        axes[0].plot([0, steps[-1]], [before, after], "o--", color=color, linewidth=1, label=f"measured, {split}")
    axes[0].set_ylabel(score_name)
    axes[0].set_title(title)
    axes[0].legend(loc="best", frameon=False, fontsize="small")
    for axis, name in zip(axes[1:], panels, strict=True):
        shown = [row for row in rows if row.get(name) is not None]
        draw = _draw_phases if name == "phase/rl" else _draw_line
        draw(axis, [row["step"] for row in shown], [row[name] for row in shown])
        axis.set_ylabel(PANELS[name], fontsize="small")
    axes[-1].set_xlabel("optimizer step")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _draw_line(axis: Any, steps: list[int], values: list[float]) -> None:
    axis.plot(steps, values, color="C3", linewidth=1)


def _draw_phases(axis: Any, steps: list[int], shares: list[float]) -> None:
    """Each log stands for the steps since the one before."""
    edges = [0, *steps]
    axis.stairs(shares, edges, fill=True, color="C0", alpha=0.4, label="on rewards")
    axis.stairs(
        [1.0] * len(shares), edges, baseline=shares, fill=True, color="C1", alpha=0.4, label="on demonstrations"
    )
    axis.set(ylim=(0, 1), yticks=(0, 1))
    axis.legend(loc="center right", fontsize="x-small")


def _moving_average(values: Sequence[float], decay: float = 0.8) -> list[float]:
    """Exponential, with Adam's bias correction, so that the first points are not pulled to 0."""
    averages, running = [], 0.0
    for count, value in enumerate(values, 1):
        running = decay * running + (1 - decay) * value
        averages.append(running / (1 - decay**count))
    return averages
