"""What an evaluation leaves behind: a table, a JSON file and a picture."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_ext.agents.evaluate import Score

_COLUMNS = {
    "success": "success",
    "reward": "reward",
    "turns": "turns",
    "tokens": "tokens",
    "invalid": "invalid",
    "truncated": "truncated",
    "failed": "failed",
    "seconds": "s/episode",
}


def table(scores: Sequence[Score]) -> str:
    """The scores as lines of text, a player a line. The success rate comes with its 95% interval."""
    width = max(len(score.player) for score in scores)
    lines = [" ".join(["player".ljust(width), "success (95%)".rjust(20), *map(_heading, list(_COLUMNS)[1:])])]
    for score in scores:
        rate = "-"
        if score.success is not None:
            rate = f"{score.success:.3f} ({score.success_low:.3f}-{score.success_high:.3f})"
        cells = [_cell(getattr(score, name)) for name in list(_COLUMNS)[1:]]
        lines.append(" ".join([score.player.ljust(width), rate.rjust(20), *cells]))
    return "\n".join(lines)


def _heading(name: str) -> str:
    return _COLUMNS[name].rjust(10)


def _cell(value: float | int | None) -> str:
    text = "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
    return text.rjust(10)


def write_json(scores: Sequence[Score], path: Path, **about: Any) -> None:
    """The scores, and what was evaluated (`about`)."""
    report = {**about, "scores": [dataclasses.asdict(score) for score in scores]}
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def plot(scores: Sequence[Score], path: Path, title: str = "") -> None:
    """Success rates with their 95% intervals, mean rewards with their standard errors, and turns, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.3 + 0.42 * len(scores)), layout="constrained")
    FigureCanvasAgg(figure)
    success, reward, turns = figure.subplots(1, 3, sharey=True, width_ratios=[1.4, 1, 1])
    names = [score.player if len(score.player) <= 40 else f"...{score.player[-37:]}" for score in scores]
    for place, score in enumerate(scores):
        if score.success is not None:
            reach = [[score.success - (score.success_low or 0)], [(score.success_high or 0) - score.success]]
            success.barh(place, score.success, color="C0", xerr=reach, capsize=3, ecolor="0.3")
        if score.reward is not None:
            reward.barh(place, score.reward, color="C1", xerr=score.reward_error or 0, capsize=3, ecolor="0.3")
        if score.turns is not None:
            turns.barh(place, score.turns, color="C2")
    success.set_xlim(0, 1.02)  # the whiskers of 1 are seen
    success.set_yticks(range(len(names)), names)
    success.invert_yaxis()
    success.set_xlabel("success rate (95%)")
    reward.set_xlabel("mean reward (std. error)")
    reward.axvline(0, color="0.3", linewidth=0.8)
    turns.set_xlabel("mean turns")
    for axis in (success, reward, turns):
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=150)
