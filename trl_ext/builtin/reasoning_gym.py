"""Tasks of reasoning-gym as chat prompts. Procedural: nothing is downloaded. The reward `reasoning_gym` scores them."""

import json
from typing import Any

from datasets import Dataset

from trl_ext.errors import ConfigError, MissingExtraError, choices


def reasoning_gym_prompts(task: str, size: int = 500, seed: int = 0, **options: Any) -> Dataset:
    """`size` problems of a reasoning-gym task: columns `prompt` (chat), `answer` and `entry` (what the scorer needs).

    `options` are the task's own, e.g. `min_terms` and `max_digits` of `chain_sum`.

    Raises:
        MissingExtraError: reasoning-gym is not installed.
        ConfigError: there is no such task, or it does not take one of the options.
    """
    problems = _create(task, size=size, seed=seed, **options)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{entry['question']}\nReply with the answer only."}],
            "answer": str(entry["answer"]),
            "entry": json.dumps(entry, default=str),
        }
        for entry in problems
    ]
    return Dataset.from_list(rows)


def _create(task: str, **options: Any) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise MissingExtraError("reasoning_gym tasks need: pip install 'trl-ext[smollm2]'") from None
    if task not in DATASETS:
        raise ConfigError(f"reasoning_gym:{task}: no such task; {choices(task, DATASETS)}")
    try:
        return reasoning_gym.create_dataset(task, **options)
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"reasoning_gym:{task} with {options}: {error}") from None
