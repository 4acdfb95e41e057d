"""Rows of a rollout, as TRL passes them on: a dict of tensors whose first dimension is the row."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Rows = dict[str, Any]


def loss_mask(rows: Rows) -> Tensor:
    """1 for each token that the model wrote and that counts; tool and environment tokens are 0. Shape (B, T)."""
    mask: Tensor = rows["completion_mask"]
    return mask * rows["tool_mask"] if "tool_mask" in rows else mask


def parts(rows: Rows) -> list[str]:
    """What is padded apart: "prompt" and "completion", and those of a demonstration where rows carry one."""
    stems = [name.removesuffix("_mask") for name in rows if name.endswith(("prompt_mask", "completion_mask"))]
    return sorted(stems)


def lengths(rows: Rows) -> Tensor:
    """Of each row and part, up to the token that is furthest from where its padding is. Shape (B, parts)."""
    columns = []
    for part in parts(rows):
        mask: Tensor = rows[f"{part}_mask"]
        from_start = torch.arange(1, mask.size(1) + 1, device=mask.device)
        distance = from_start.flip(0) if part.endswith("prompt") else from_start  # prompts are padded on the left
        columns.append((mask.bool() * distance).amax(1) if mask.size(1) else mask.new_zeros(len(mask)))
    return torch.stack(columns, 1)


def merge(batches: Sequence[Rows]) -> Rows:
    """Micro-batches of one rollout as one. What is no list and has no rows is the same in all of them."""

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], list):
            return [value for part in values for value in part]
        return torch.cat(values) if isinstance(values[0], Tensor) and values[0].dim() else values[0]

    return {name: joined([batch[name] for batch in batches]) for name in batches[0]}


def take(rows: Rows, index: Sequence[int], widths: Sequence[int]) -> Rows:
    """Some of the rows, each part cut to a width. A (B, T) tensor of any other name is one over completion tokens."""
    width = dict(zip(parts(rows), widths, strict=True))
    length = rows["completion_ids"].size(1)
    at = torch.tensor(index, device=rows["completion_ids"].device)

    def taken(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [value[row] for row in index]
        if not isinstance(value, Tensor) or not value.dim():
            return value
        part = name.removesuffix("_ids").removesuffix("_mask")
        if part.endswith("prompt") and part in width:
            return value[at, value.size(1) - width[part] :]
        if part in width:
            return value[at, : width[part]]
        if value.dim() > 1 and value.size(1) == length:
            return value[at, : width["completion"]]
        return value[at]

    return {name: taken(name, value) for name, value in rows.items()}
