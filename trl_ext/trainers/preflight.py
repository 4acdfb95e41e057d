"""What a trainer refuses before it loads anything: bad datasets, unknown models, folders that cannot be written."""

import tempfile
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset, IterableDataset
from transformers import AutoConfig
from trl import GRPOConfig

from trl_ext.errors import ConfigError, DatasetError, ModelNotFoundError, OutputDirError

Config = TypeVar("Config", bound=GRPOConfig)


def check_arguments(
    config_class: type[Config],
    name: str,
    model: Any,
    args: Any,
    train_dataset: Any,
    eval_dataset: Any = None,
    environment_factory: Any = None,
) -> Config:
    """What a trainer of ours refuses at once. Returns `args`, made anew (output_dir MODEL-NAME) if there are none.

    Raises:
        ConfigError: `args` is no `config_class`.
        DatasetError, ModelNotFoundError, OutputDirError: see the checks below.
    """
    if args is None:
        model_name = model if isinstance(model, str) else model.config.name_or_path
        args = config_class(f"{model_name.split('/')[-1]}-{name}")
    if not isinstance(args, config_class):
        raise ConfigError(
            f"args is a {type(args).__name__}: {name}Trainer takes a {config_class.__name__} (same fields and more)"
        )
    check_output_dir(str(args.output_dir))
    if not environment_factory:  # an environment may bring its own prompts
        check_prompts(train_dataset, "train_dataset")
        if eval_dataset is not None:
            check_prompts(eval_dataset, "eval_dataset")
        check_size(train_dataset, args)
    revision = (args.model_init_kwargs or {}).get("revision", "main")
    check_model(model, revision=revision, trust_remote_code=args.trust_remote_code)
    return args


def check_prompts(dataset: Any, name: str = "train_dataset") -> None:
    """Refuse what `GRPOTrainer` would stumble over in the middle of a step.

    `prompt` must be a string, or a list of messages (`{"role": ..., "content": ...}`). A `Dataset` is checked whole for
    missing prompts; of an `IterableDataset` only the first row is looked at. In a dict of sets, each is checked.

    Raises:
        DatasetError: names the dataset, what was found and what is allowed.
    """
    if isinstance(dataset, dict):
        for key, split in dataset.items():
            check_prompts(split, f"{name}[{key!r}]")
        return
    if not isinstance(dataset, Dataset | IterableDataset):
        raise DatasetError(f"{name} is a {type(dataset).__name__}: must be a datasets.Dataset or IterableDataset")
    first = next(iter(dataset), None)
    if first is None:
        raise DatasetError(f"{name} is empty: it must have at least one row")
    if "prompt" not in first:
        raise DatasetError(
            f"{name} has no column 'prompt' (it has {sorted(first)}): "
            "rename one with dataset.rename_column(NAME, 'prompt')"
        )
    if not isinstance(dataset, IterableDataset):
        _check_missing(dataset, name)
    if not _is_prompt(first["prompt"]):
        raise DatasetError(
            f"{name}: column 'prompt' holds {_describe(first['prompt'])}: "
            'must be a string or a list of {"role": ..., "content": ...}'
        )


def check_size(dataset: Any, args: GRPOConfig) -> None:
    """Refuse a training set that does not fill one generation batch: TRL would end the training at step 0.

    Raises:
        DatasetError: says what it has, what is needed, and which options change that.
    """
    needed = args.generation_batch_size // args.num_generations
    if isinstance(dataset, Dataset) and len(dataset) < needed:
        raise DatasetError(
            f"train_dataset has {len(dataset)} prompts, one generation batch takes {needed}: lower "
            f"per_device_train_batch_size ({args.per_device_train_batch_size}) or steps_per_generation "
            f"({args.steps_per_generation}), or raise num_generations ({args.num_generations})"
        )


def _check_missing(dataset: Dataset, name: str) -> None:
    tables = dataset.select_columns("prompt").with_format("arrow").iter(batch_size=10_000)
    missing = sum(table["prompt"].null_count for table in tables)
    if missing:
        raise DatasetError(
            f"{name}: {missing} of {len(dataset)} rows have no prompt: "
            "drop them with dataset.filter(lambda row: row['prompt'] is not None)"
        )


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, list):
        return bool(prompt) and all(isinstance(m, dict) and "role" in m and "content" in m for m in prompt)
    return isinstance(prompt, str)


def _describe(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {type(value[0]).__name__}" if value else "an empty list"
    return f"{type(value).__name__} ({value!r:.40})"


def check_model(model: Any, **from_pretrained: Any) -> None:
    """Refuse a model name that leads nowhere; only its `config.json` is read. A model that is an object passes.

    Raises:
        ModelNotFoundError: it is no folder with a config, and the Hub does not have it or cannot be reached.
    """
    if not isinstance(model, str):
        return
    try:
        AutoConfig.from_pretrained(model, **from_pretrained)
    except (OSError, ValueError) as error:
        folder = Path(model)
        if isinstance(error, ValueError) and not folder.is_dir():
            raise  # found, but not to be used as it is (custom code, an unknown architecture): transformers says why
        if folder.is_dir() and not (folder / "config.json").is_file():
            reason = "the folder has no config.json: is it a checkpoint saved with save_pretrained?"
        elif folder.is_dir():
            reason = f"its config.json cannot be read ({_first_line(error)})"
        else:
            reason = "no such folder here, and the Hub does not have it, refuses it, or cannot be reached"
        raise ModelNotFoundError(f"model {model!r}: {reason}") from None


def check_output_dir(output_dir: str) -> None:
    """Make the folder and try to write into it, now rather than at the first checkpoint.

    Raises:
        OutputDirError: says why it cannot be written.
    """
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise OutputDirError(f"output_dir {output_dir!r} cannot be written: {error.strerror or error}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
