"""Pairs of training runs, one lean and one plain, on rollouts where leanness has something to leave out."""

from typing import Any

import torch
from datasets import Dataset
from trl import GRPOTrainer

from tests.trainers import training
from tests.trainers.training import fixed_rollout, load, weights
from trl_ext.trainers.lean_update import LeanUpdateMixin


class Lean(LeanUpdateMixin, GRPOTrainer):
    """TRL's trainer with lean updates."""


# prompts from 2 to 11 tokens
RAGGED = Dataset.from_list(
    [{"prompt": f"{'7' * (i % 10)}{i}=", "completion": "1" * (1 + i % 5)} for i in range(24)],
)


def flat(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Letters, for every second prompt; the other groups have no variance."""
    shares = training.letters(completions)
    return [share if len(prompt) % 2 else 0.5 for prompt, share in zip(prompts, shares, strict=True)]


def nothing(completions: list[str], **columns: Any) -> list[float]:
    return [0.5] * len(completions)


def letters_on_one_process(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
    """The other process has no advantages."""
    rank = torch.distributed.get_rank()
    return training.letters(completions) if rank == 0 else nothing(completions)


def config(config_class: type, **options: Any) -> Any:
    """Two optimizer steps of three micro-batches for each rollout, and each rollout used twice."""
    defaults = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "steps_per_generation": 6,
        "num_iterations": 2,
        "max_completion_length": 24,
        "max_steps": 6,
        "optim": "sgd",
        "learning_rate": 0.3,
    }
    return training.config(config_class, **{**defaults, **options})


def trained(trainer_class: type, path: str, args: Any, **options: Any) -> Any:
    defaults = {"train_dataset": RAGGED, "reward_funcs": flat, "rollout_func": fixed_rollout}
    return training.trained(trainer_class, path, args, **{**defaults, **options})


def saved(trainer: Any) -> tuple[float, float]:
    """The mean shares of rows skipped and of tokens saved."""
    rows = [row for row in trainer.state.log_history if "lean/rows_skipped" in row]
    return tuple(sum(row[f"lean/{name}"] for row in rows) / len(rows) for name in ("rows_skipped", "tokens_saved"))


def distance(lean: Any, plain: Any, path: str) -> float:
    """How far the weights are apart, over how far training moved them."""
    a, b = weights(lean.model), weights(plain.model)
    before = weights(load(path, b.dtype))
    moved = (b[: len(before)] - before).norm()
    assert moved > 1e-3 * before.norm(), "the run under test has to move the weights"
    return float((a - b).norm() / moved)
