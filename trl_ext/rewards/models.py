"""Models that rewards share: loaded once per process, run on its device, over batches sorted by length."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from trl_ext.errors import ModelNotFoundError

Result = TypeVar("Result")


@functools.cache
def load_model(auto_class: str, name: str) -> tuple[Any, Any]:
    """The model (eval mode, no gradients, on this process's device) and the tokenizer of a folder or a Hub name.

    `auto_class` is a class of transformers, e.g. "AutoModelForSequenceClassification". Loaded once per process, however
    many rewards name it.

    Raises:
        ModelNotFoundError: neither a checkpoint folder here nor a model that can be fetched.
    """
    import transformers
    from accelerate import PartialState

    try:
        model = getattr(transformers, auto_class).from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ModelNotFoundError(f"model {name!r} cannot be loaded: {' '.join(str(error).split()):.200}") from None
    return model.eval().requires_grad_(False).to(PartialState().device), tokenizer


@torch.inference_mode()
def run_by_length(
    items: Sequence[Any], size: Callable[[Any], int], run: Callable[[list[Any]], list[Result]], batch_size: int = 32
) -> list[Result]:
    """`run` over batches of items of like size, longest first; the results in the order of the items.

    Memory stays that of one batch. Longest first: a batch that does not fit fails at once and not in the end.
    """
    order = sorted(range(len(items)), key=lambda index: -size(items[index]))
    results: dict[int, Result] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        results.update(zip(rows, run([items[row] for row in rows]), strict=True))
    return [results[row] for row in range(len(items))]
