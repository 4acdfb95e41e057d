"""Short seeded training runs, whose completions are fixed so that only the update is under test."""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

CPU = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "report_to": [],
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}
PROMPTS = Dataset.from_list([{"prompt": f"{a}{sign}{b}="} for a in range(10) for b in range(4) for sign in "+-"])


def letters(completions: list[str], **columns: Any) -> list[float]:
    """A reward with spread: the share of letters among the characters, minus a little for length."""
    return [sum(c.isalpha() for c in text) / max(len(text), 1) - 0.02 * len(text) for text in completions]


_OUTPUTS = tempfile.TemporaryDirectory()  # gone with the process


def config(config_class: type, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "max_steps": 8,
        "lr_scheduler_type": "constant",
    }
    return config_class(**{"output_dir": tempfile.mkdtemp(dir=_OUTPUTS.name), **CPU, **defaults, **options})


def load(path: str, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


def make_trainer(trainer_class: type, path: str, args: Any, **options: Any) -> Any:
    defaults = {"model": load(path), "reward_funcs": letters, "train_dataset": PROMPTS}
    defaults["processing_class"] = AutoTokenizer.from_pretrained(path)
    return trainer_class(args=args, **{**defaults, **options})


def trained(trainer_class: type, path: str, args: Any, **options: Any) -> Any:
    """Made and trained in one go: a trainer seeds when it is made, so two of a kind see the same random numbers."""
    trainer = make_trainer(trainer_class, path, args, **options)
    trainer.train()
    return trainer


def fixed_rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """A TRL rollout function: ragged completions drawn from the prompt, its place and the step, not from the model."""
    return _drawn(prompts, trainer, 1000 * trainer.state.global_step, same_after=4)


def ragged_rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """As `fixed_rollout`, the same in every step."""
    return _drawn(prompts, trainer, 0, same_after=1000)


def _drawn(prompts: list[str], trainer: Any, seed: int, same_after: int) -> dict[str, Any]:
    tokenizer = trainer.processing_class
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    completion_ids = []
    first = trainer.accelerator.process_index * len(prompts)
    for index, ids in enumerate(prompt_ids, first):
        generator = torch.Generator().manual_seed(seed + 31 * sum(ids) + index % same_after)
        length = int(torch.randint(1, trainer.max_completion_length + 1, (1,), generator=generator))
        tokens = torch.randint(3, 98, (length,), generator=generator).tolist()
        completion_ids.append([*tokens[:-1], tokenizer.eos_token_id])
    logprobs = [[0.0] * len(ids) for ids in completion_ids]
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}


def demonstrations(count: int = 80) -> Dataset:
    """The prompts with completions of different lengths."""
    return Dataset.from_list(
        [{"prompt": row["prompt"], "completion": str(7**i % 10 ** (1 + i % 4))} for i, row in enumerate(PROMPTS)][
            :count
        ]
    )


def parity(completions: list[str], **columns: Any) -> list[float]:
    """1 for about half of the texts."""
    return [float(sum(map(ord, text)) % 2 == 0) for text in completions]


def weights(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
