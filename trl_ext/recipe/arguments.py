"""Command line and YAML of a recipe, through TRL's own parser."""

import argparse
import contextlib
import difflib
import errno
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
import yaml
from accelerate import PartialState
from peft.utils.error import NoMatchingPeftModuleError
from transformers.integrations import INTEGRATION_TO_CALLBACK
from trl import GRPOConfig, ModelConfig, TrlParser

from trl_ext.errors import ConfigError, TrlExtError, choices
from trl_ext.trainers.checkpoints import resolve_checkpoint

TRL_REWARDS = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")

Config = TypeVar("Config", bound=GRPOConfig)
Arguments = TypeVar("Arguments", bound="RecipeArguments")


@dataclass
class RecipeArguments:
    """Arguments of every recipe, beside those of the trainer and of TRL's `ModelConfig`: TRL's names, what we take."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "The prompts: a .jsonl, .json, .parquet or .csv file with a column `prompt`, a .txt file (the "
            "first words of its paragraphs), a dataset of the Hub, builtin:arithmetic, or reasoning_gym:TASK. "
            "(--model_name_or_path takes builtin:tiny and builtin:smollm2.)"
        },
    )
    sft_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "recipes/hybrid.py: demonstrations, with columns `prompt` and `completion` or `messages`: a data "
            "file, a .txt file, a dataset of the Hub or builtin:arithmetic. Unset: the rows of --dataset_name."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset of the Hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "The split to train on."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "The split held out for evaluation, if the dataset has it."}
    )
    dataset_streaming: bool = field(default=False, metadata={"help": "Stream the dataset instead of loading it."})
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Rewards: {', '.join(TRL_REWARDS)} (TRL's), or module.function, found from the current folder. "
            "Unset: the reward that a built-in or reasoning_gym task brings."
        },
    )
    reward: str | None = field(
        default=None,
        metadata={
            "help": "A reward spec: a JSON file (see recipes/rewards/ and `trl-ext rewards list`), or JSON itself."
        },
    )
    reward_plugins: list[str] | None = field(
        default=None, metadata={"help": "Python files that register reward types for the spec. They are executed."}
    )
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "A reward model besides: a folder or a Hub name (sequence classification)."}
    )
    task_options: str | None = field(
        default=None,
        metadata={"help": 'Options of a reasoning_gym task as JSON, e.g. \'{"size": 500, "max_digits": 1}\'.'},
    )
    measure_prompts: int | None = field(
        default=None,
        metadata={
            "help": "How many prompts (of those trained on, and of those held out) are sampled before and after "
            "training for the table at the end. 0 leaves it out. Unset: all of them on builtin:arithmetic, else 0."
        },
    )


def words_of(args: Sequence[str]) -> list[str]:
    """A command line with each option spelt one way: `--an-option=value` as `--an_option`, `value`."""
    words = []
    for arg in args:
        option, equals, value = arg.partition("=")
        if not re.fullmatch(r"--[\w-]+", option):
            words.append(arg)
            continue
        words += [f"--{option[2:].replace('-', '_')}", *([value] if equals else [])]
    return words


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def parse_recipe_args(
    config_class: type[Config],
    default_config: Path,
    description: str,
    args: Sequence[str] | None = None,
    arguments_class: type[Arguments] = RecipeArguments,  # type: ignore[assignment]
) -> tuple[Arguments, Config, ModelConfig]:
    """Parse `args` (default: the command line). A run that names neither a model nor a config gets `default_config`.

    Raises:
        ConfigError: an unknown option (with the close ones), a bad value, a config file that cannot be read.
    """
    args = words_of(sys.argv[1:] if args is None else args)
    if args[-1:] == ["--config"]:
        raise ConfigError("--config: give a YAML file")
    if not {"--config", "--model_name_or_path", "--help", "-h"} & set(args):
        args = ["--config", str(default_config), *args]
    # TRL 1.16 sets `gradient_checkpointing` itself (base_config.py), under the name that transformers 5.23 deprecates
    warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing", category=FutureWarning)
    parser = TrlParser(
        (arguments_class, config_class, ModelConfig),
        usage=f"accelerate launch recipes/{Path(sys.argv[0]).name} [--config FILE.yaml] [--OPTION VALUE ...]",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,  # --max_step is a slip, not --max_steps
    )
    if config_class is not GRPOConfig:  # with TRL's own trainer processes may stop at different steps, and wait
        parser.set_defaults_with_config(enable_jit_checkpoint=True)
    try:
        recipe_args, training_args, model_args = parser.parse_args_and_config(args)
    except TrlExtError:
        raise
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise ConfigError(_one_line(error, parser)) from None
    _check_values(training_args)
    if model_args.model_name_or_path is None:
        raise ConfigError("no model: give --model_name_or_path (a folder, a Hub name, builtin:tiny or builtin:smollm2)")
    if recipe_args.dataset_name is None:
        raise ConfigError(
            "no dataset: give --dataset_name (a .jsonl, .parquet or .csv file, a Hub name, builtin:arithmetic or "
            "reasoning_gym:TASK)"
        )
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    training_args.resume_from_checkpoint = _checkpoint(training_args)
    return recipe_args, training_args, model_args


def _check_values(training_args: GRPOConfig) -> None:
    """What torch and transformers would refuse with a traceback, and after the model has been made."""
    if not 0 <= training_args.learning_rate < float("inf"):
        raise ConfigError(f"learning_rate = {training_args.learning_rate}: must be at least 0 and finite")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if (rows := getattr(training_args, name)) < 1:
            raise ConfigError(f"{name} = {rows}: must be at least 1")
    for name in training_args.report_to or ():
        if name not in INTEGRATION_TO_CALLBACK:
            raise ConfigError(f"report_to: no {name!r}; {choices(name, [*INTEGRATION_TO_CALLBACK, 'none'])}")


def _checkpoint(training_args: GRPOConfig) -> str | None:
    """The folder that `--resume_from_checkpoint` means."""
    resume: str | bool | None = training_args.resume_from_checkpoint
    if str(resume).lower() in ("true", "latest", "auto"):
        resume = True if str(resume).lower() != "auto" else "auto"
    checkpoint = resolve_checkpoint(resume, str(training_args.output_dir))
    if resume and PartialState().is_main_process:
        print(f"Resuming from {checkpoint}" if checkpoint else "No checkpoint to resume from: a new run", flush=True)
    return checkpoint


def _one_line(error: Exception, parser: argparse.ArgumentParser) -> str:
    message = " ".join(str(error).split())
    if "bf16/gpu" in message:  # what transformers says names neither the option nor that TRL switches it on
        return "bf16 is on unless told otherwise, and there is no GPU here that has it: give --bf16 false"
    known = [option for action in parser._actions for option in action.option_strings]
    for option in re.findall(r"--[\w-]+", message):
        if option not in known and (close := difflib.get_close_matches(option, known)):
            message += f" ({option}: did you mean {' or '.join(close)}?)"
    return message


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with `error: ...` where trl-ext refused something or the disk is full or read-only.

    Other errors keep their traceback. A program that comes to its end, or is told to by a SIGTERM, leaves its process
    group: torch's threads would end it with an abort now and then, where they still run when Python is gone.
    """
    ended = False
    try:
        yield
        ended = True
    except TrlExtError as error:
        sys.exit(f"error: {error}")
    except NoMatchingPeftModuleError as error:
        sys.exit(
            f"error: lora_target_modules: {' '.join(str(error).split())} A single name is a pattern for the whole path "
            "of a module, two or more are endings of it; all-linear takes all linear layers."
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            sys.exit(f"error: {error.filename or 'a file'} cannot be written: {error.strerror}")
        raise
    except SystemExit as stop:
        ended = not stop.code
        raise
    finally:
        if ended and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
