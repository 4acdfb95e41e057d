"""Which optimizer step trains on demonstrations and which on rewards: pure functions of the step."""

import math
from collections.abc import Callable
from typing import Literal

from trl_ext.errors import ConfigError

Phase = Literal["sft", "rl"]
Shape = Literal["linear", "cosine", "step"]

SHAPES: tuple[Shape, ...] = ("linear", "cosine", "step")


def ramp(progress: float, start: float, end: float, shape: Shape) -> float:
    """From `start` to `end` as `progress` goes from 0 to 1: straight, by half a cosine, or at once in the middle."""
    progress = min(max(progress, 0.0), 1.0)
    if shape == "cosine":
        progress = 0.5 * (1.0 - math.cos(math.pi * progress))
    elif shape == "step":
        progress = float(progress >= 0.5)
    return start + (end - start) * progress


def alternate(max_steps: int, sft_steps: int, rl_steps: int) -> list[Phase]:
    """`sft_steps` on demonstrations, then `rl_steps` on rewards, repeated; the phase of each of `max_steps` steps."""
    return ["sft" if step % (sft_steps + rl_steps) < sft_steps else "rl" for step in range(max_steps)]


def sequential(max_steps: int, sft_steps: int) -> list[Phase]:
    """All steps on demonstrations first."""
    return ["sft" if step < sft_steps else "rl" for step in range(max_steps)]


def curriculum(max_steps: int, block: int, share: Callable[[float], float]) -> list[Phase]:
    """The share of steps on rewards grows as `share(progress)` says, in blocks of `block` such steps.

    A block is what one batch of completions is trained on for. It starts as soon as the steps on rewards so far are
    behind the sum of the shares by at least half a block, so that they never stray further than a block from it.
    """
    phases: list[Phase] = []
    owed = 0.0  # the sum of the shares up to and with this step, minus the steps on rewards so far
    while len(phases) < max_steps:
        owed += share(len(phases) / max(max_steps - 1, 1))
        if owed < 0.5 * block:
            phases.append("sft")
            continue
        owed -= 1.0
        phases.append("rl")
        for _ in range(block - 1):
            owed += share(min(len(phases) / max(max_steps - 1, 1), 1.0)) - 1.0
            phases.append("rl")
    return phases[:max_steps]


def check_phases(phases: list[Phase], mode: str) -> None:
    """Refuse a schedule that has no step of a kind.

    Raises:
        ConfigError: which kind never comes, in how many steps.
    """
    for phase, name in (("sft", "demonstrations"), ("rl", "rewards")):
        if phase not in phases:
            raise ConfigError(
                f"mode = {mode!r}: none of the {len(phases)} steps trains on {name}; raise max_steps, or change the "
                "schedule (sft_steps, rl_steps, rl_share_start, rl_share_end)"
            )
