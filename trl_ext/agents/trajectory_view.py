"""Trajectories for people: one episode turn by turn, and a table of many."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from trl_ext.agents.trajectory import Trajectory, content_text, successes
from trl_ext.errors import ConfigError

ROWS = 8  # at most so many ranges of steps in the table


def replay(trajectories: Sequence[Trajectory], episode: int) -> str:
    """One episode, message by message, each turn with its reward.

    Raises:
        ConfigError: there is no such episode.
    """
    if not 0 <= episode < len(trajectories):
        raise ConfigError(f"--episode {episode}: there are {len(trajectories)}, 0 to {len(trajectories) - 1}")
    one = trajectories[episode]
    lines = [f"episode {episode} of {len(trajectories)}, step {one.step}, group {one.group or '-'}"]
    if one.row:
        lines.append("  ".join(f"{name}={value!r:.60}" for name, value in one.row.items()))
    turn_of = {place: turn for turn, place in enumerate(one.replies)}
    for place, message in enumerate(one.messages):
        turn = turn_of.get(place)
        lines.append(f"\n[{message['role']}]" + (f" turn {turn + 1}" if turn is not None else ""))
        lines.append(textwrap.indent(content_text(message), "  ", lambda line: True))
        if turn is not None and turn < len(one.rewards):
            lines.append(f"  -> reward {one.rewards[turn]:+.4g}")
    return "\n".join([*lines, "", _ending(one)])


def stats(trajectories: Sequence[Trajectory]) -> str:
    """A table of success, reward, turns, tokens and failures, by training step and in all; the kinds of failures."""
    known = bool(successes([one for one in trajectories if one.failure is None]))
    table = pd.DataFrame([_numbers(one, known) for one in trajectories])
    groups: list[tuple[str, Any]] = []
    steps = sorted(table["step"].unique())
    if len(steps) > 1:
        size = -(-len(steps) // ROWS)
        for first in range(0, len(steps), size):
            part = steps[first : first + size]
            name = f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}"
            groups.append((f"step {name}", table[table["step"].isin(part)]))
    groups.append(("all", table))
    names = ("episodes", "success", "reward", "std", "turns", "tokens", "cut off", "failed")
    lines = [f"{'':<16}" + "".join(f"{name:>10}" for name in names), *(_row(name, rows) for name, rows in groups)]
    failures = Counter(one.failure for one in trajectories if one.failure is not None)
    if failures:
        lines += ["", "failures:", *(f"{count:>6}  {text}" for text, count in failures.most_common(10))]
    return "\n".join(lines)


def _numbers(one: Trajectory, success_known: bool) -> dict[str, Any]:
    if one.failure is not None:
        return {"step": one.step, "failed": True}
    return {
        "step": one.step,
        "failed": False,
        "success": float(bool(one.success)) if success_known else math.nan,
        "reward": one.reward,
        "turns": one.turns,
        "tokens": one.sampled_tokens,
        "cut": float(bool(one.truncated)),
    }


def _row(name: str, rows: Any) -> str:
    played = rows[~rows["failed"]]
    cells = ["-"] * 6
    if not played.empty:
        means = [played[column].mean() for column in ("success", "reward", "turns", "tokens", "cut")]
        means.insert(2, played["reward"].std(ddof=0))
        cells = ["-" if math.isnan(mean) else f"{mean:.3f}" for mean in means]
    return f"{name:<16}{len(rows):>10}" + "".join(f"{cell:>10}" for cell in cells) + f"{len(rows) - len(played):>10}"


def _ending(one: Trajectory) -> str:
    if one.failure is not None:
        return f"FAILED at {one.failure}"
    end = "over" if one.terminated else f"cut off ({one.truncated})" if one.truncated else "unfinished"
    outcome = "success" if one.success else "no success" if one.success is False else "no word of success"
    return f"{end}, {outcome}, reward {one.reward:.4g}, {one.turns} turns, {one.sampled_tokens} tokens sampled"
