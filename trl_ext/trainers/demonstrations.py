"""Demonstrations for supervised steps: prompt and completion as token ids, as TRL's `SFTTrainer` makes them."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl.data_utils import is_conversational

from trl_ext.errors import DatasetError

Demonstration = dict[str, list[int]]  # prompt_ids, completion_ids


def as_prompts(dataset: Any) -> Any:
    """A dataset with `prompt`, made of `messages` where it has these: the last message is the completion."""
    if isinstance(dataset, Dataset) and "messages" in dataset.column_names and "prompt" not in dataset.column_names:
        return dataset.map(
            lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}, remove_columns="messages"
        )
    return dataset


def check_demonstrations(dataset: Any, name: str) -> None:
    """Refuse what has no demonstrations.

    Raises:
        DatasetError: names the dataset, what was found and what is allowed.
    """
    if not isinstance(dataset, Dataset):
        raise DatasetError(f"{name} is a {type(dataset).__name__}: demonstrations must be a datasets.Dataset")
    missing = [column for column in ("prompt", "completion") if column not in dataset.column_names]
    if missing or not len(dataset):
        found = f"no column {missing[0]!r} (it has {dataset.column_names})" if missing else "no rows"
        raise DatasetError(f"{name} has {found}: demonstrations need `prompt` and `completion`, or chat `messages`")
    kinds = str | list if isinstance(dataset[0]["prompt"], list) else str
    for row, completion in enumerate(dataset["completion"]):
        if completion is None or completion in ("", []):
            raise DatasetError(f"{name}: row {row} has no completion ({completion!r}); drop such rows")
        if not isinstance(completion, kinds):
            allowed = "a string or messages" if kinds is not str else "a string, as its prompt is"
            raise DatasetError(f"{name}: the completion of row {row} is {completion!r:.40}: must be {allowed}")


def tokenize(row: dict[str, Any], tokenizer: Any, max_length: int) -> Demonstration:
    """Token ids of a row's prompt and of its completion, the end-of-sequence token included (TRL's `SFTTrainer`).

    The completion begins where the ids of prompt and completion together leave those of the prompt alone, and is cut
    to `max_length` ids in all.

    Raises:
        DatasetError: nothing of the completion is left.
    """
    prompt, completion = row["prompt"], row["completion"]
    if is_conversational({"prompt": prompt}):
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        alone = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(prompt + completion, return_dict=True)["input_ids"]
    else:
        if not completion.endswith(tokenizer.eos_token):
            completion += tokenizer.eos_token
        alone, whole = tokenizer(text=prompt)["input_ids"], tokenizer(text=prompt + completion)["input_ids"]
    shared = next(
        (i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole))
    )
    if shared >= min(len(whole), max_length):
        raise DatasetError(
            f"a prompt of {shared} tokens leaves no room for its demonstration: raise sft_max_length ({max_length})"
        )
    return {"prompt_ids": whole[:shared], "completion_ids": whole[shared:max_length]}


def collate(rows: list[Demonstration], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    """Prompts padded on the left, completions on the right, as in TRL's rollouts: (B, P) and (B, T)."""
    prompts = [torch.tensor(row["prompt_ids"]) for row in rows]
    completions = [torch.tensor(row["completion_ids"]) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {
        "prompt_ids": pad(prompts, True, pad_token_id, "left"),
        "prompt_mask": pad([torch.ones_like(ids) for ids in prompts], True, 0, "left"),
        "completion_ids": pad(completions, True, pad_token_id),
        "completion_mask": pad([torch.ones_like(ids) for ids in completions], True, 0),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def endless(loader: Any, skip: int = 0) -> Iterator[Any]:
    """The batches of a loader over and over, after the first `skip`. Takes nothing from the global random state."""
    while True:
        with torch.random.fork_rng(devices=[]):  # an iterator draws a seed for workers, some with their first batch
            batches = iter(loader)
            first = list(itertools.islice(batches, 1))
        for batch in itertools.chain(first, batches):
            if skip > 0:
                skip -= 1
            else:
                yield batch


def shuffled(rows: Sequence[Any], seed: int) -> Iterator[Any]:
    """The rows over and over, each time in another order: the same on every process."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from (rows[index] for index in torch.randperm(len(rows), generator=generator).tolist())
