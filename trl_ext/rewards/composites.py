"""How the scores of several components become one. A component that is None is left out; if all are, so is the row."""

import math
from collections.abc import Callable
from typing import Any

from trl_ext.rewards.postprocess import Scores


def combine(kind: str, parts: list[Scores], weights: list[float], options: dict[str, Any]) -> Scores:
    """The scores of the composite `kind`, row by row, from those of its parts.

    `weighted_sum`: sum of weight * score, divided by the sum of all weights (by 1 if that is 0). A None counts as TRL
    counts it, as nothing in the sum, so that one composite and TRL's `reward_weights` give the same reward.
    `product`, `minimum`: of the scores. `conditioned`: the first part where the second one reaches `threshold`, else
    `otherwise`; None where the second is None.
    """
    if kind == "conditioned":
        reward, on = parts
        return [
            None if passed is None else score if passed >= options["threshold"] else options["otherwise"]
            for score, passed in zip(reward, on, strict=True)
        ]
    if kind == "weighted_sum":
        total = sum(weights) or 1.0
        weighted = [[(weight, score) for weight, score in zip(weights, row, strict=True)] for row in _rows(parts)]
        return [_reduce(lambda known: sum(w * s for w, s in known) / total, row) for row in weighted]
    reduce: Callable[[list[float]], float] = math.prod if kind == "product" else min
    return [reduce(known) if (known := [score for score in row if score is not None]) else None for row in _rows(parts)]


def _rows(parts: list[Scores]) -> list[tuple[float | None, ...]]:
    return list(zip(*parts, strict=True))


def _reduce(
    function: Callable[[list[tuple[float, float]]], float], row: list[tuple[float, float | None]]
) -> float | None:
    known = [(weight, score) for weight, score in row if score is not None]
    return function(known) if known else None
