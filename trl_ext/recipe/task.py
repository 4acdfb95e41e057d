"""A recipe's task: which model, which prompts, which rewards."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trl.rewards
from accelerate import PartialState
from datasets import Dataset, load_dataset
from trl import GRPOConfig, ModelConfig

from trl_ext.agents.registry import import_from_here
from trl_ext.errors import ConfigError, DatasetError
from trl_ext.recipe.arguments import TRL_REWARDS, RecipeArguments
from trl_ext.rewards import make_reward, make_reward_funcs
from trl_ext.trainers.preflight import check_model, check_output_dir

TEXT_FILES = (".txt", ".md")
FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass
class Task:
    """`score_name` is what the measured `metric` is called in the table: "accuracy" where every reward is 0 or 1."""

    model: str
    train_dataset: Any
    heldout_dataset: Any
    reward_funcs: list[Any]
    score_name: str = "reward"
    measure_prompts: int | None = 0
    metric: str = "eval_reward"


def load_task(recipe_args: RecipeArguments, model_args: ModelConfig, training_args: GRPOConfig) -> Task:
    """Make or load what the arguments name.

    Raises:
        ConfigError, DatasetError, MissingExtraError: what is wrong with a name or an option, and what is allowed.
    """
    train, heldout, reward_funcs, score_name = _load_prompts(recipe_args, training_args.seed)
    if recipe_args.reward and recipe_args.reward_funcs:
        raise ConfigError("give --reward (a spec) or --reward_funcs, not both")
    if recipe_args.reward_funcs:
        reward_funcs, score_name = [_load_reward(name) for name in recipe_args.reward_funcs], "reward"
        _check_chat(recipe_args, train)
    if recipe_args.reward:
        reward_funcs, training_args.reward_weights = make_reward_funcs(
            recipe_args.reward, recipe_args.reward_plugins or ()
        )
        score_name = "reward"
    if recipe_args.reward_model_name_or_path:
        check_model(recipe_args.reward_model_name_or_path)
        reward_funcs, score_name = [*reward_funcs, recipe_args.reward_model_name_or_path], "reward"
        if training_args.reward_weights is not None:
            training_args.reward_weights = [*training_args.reward_weights, 1.0]
    if not reward_funcs:
        raise ConfigError(
            f"no reward for {recipe_args.dataset_name}: give --reward SPEC.json, --reward_funcs "
            f"({', '.join(TRL_REWARDS)}, or module.function) or --reward_model_name_or_path"
        )
    measure = recipe_args.measure_prompts
    if measure is not None and measure < 0:
        raise ConfigError(f"measure_prompts = {measure}: must be at least 0")
    if measure is None and recipe_args.dataset_name != "builtin:arithmetic":
        measure = 0
    model = load_model(str(model_args.model_name_or_path), training_args)
    return Task(model, train, heldout, reward_funcs, score_name, measure)


def load_model(name: str, training_args: GRPOConfig) -> str:
    """A name that `from_pretrained` takes. `builtin:tiny` is fitted into `output_dir/start_model` by one process."""
    if not name.startswith("builtin:"):
        return name
    if name == "builtin:smollm2":
        from trl_ext.builtin.smollm2 import smollm2_path

        with PartialState().main_process_first():
            return str(smollm2_path())
    if name == "builtin:tiny":
        return _fit_tiny(training_args)
    raise ConfigError(f"model_name_or_path = {name!r}: the built-in models are builtin:tiny and builtin:smollm2")


def _fit_tiny(training_args: GRPOConfig) -> str:
    from trl_ext.builtin.arithmetic import arithmetic_demonstrations

    what = "arithmetic demonstrations, half of them wrong"
    return fit_start_model(training_args, what, lambda: arithmetic_demonstrations(seed=training_args.seed))


def fit_start_model(training_args: GRPOConfig, what: str, demonstrations: Callable[[], Dataset], **options: Any) -> str:
    """The folder of a tiny model that one process fits to demonstrations; a resumed run has it already.

    Raises:
        OutputDirError: the output folder cannot be written.
    """
    from trl_ext.builtin.tiny_model import fit_tiny_model

    check_output_dir(str(training_args.output_dir))
    folder = Path(str(training_args.output_dir)) / "start_model"
    finished = (folder / "config.json").is_file()
    if PartialState().is_main_process and not (training_args.resume_from_checkpoint and finished):
        print(f"Fitting the tiny model to {what}", flush=True)
        fit_tiny_model(folder, demonstrations(), seed=training_args.seed, **options)
    PartialState().wait_for_everyone()
    return str(folder)


def _load_prompts(recipe_args: RecipeArguments, seed: int) -> tuple[Any, Any, list[Any], str]:
    name = str(recipe_args.dataset_name)
    family, _, task = name.partition(":")
    if family == "builtin":
        if task != "arithmetic":
            raise ConfigError(f"dataset_name = {name!r}: the built-in task is builtin:arithmetic")
        from trl_ext.builtin.arithmetic import arithmetic_prompts, exact_answer

        return *arithmetic_prompts(), [exact_answer], "accuracy"
    if family == "reasoning_gym":
        from trl_ext.builtin.reasoning_gym import reasoning_gym_prompts

        prompts: Dataset = reasoning_gym_prompts(task, **{"seed": seed, **_options(recipe_args.task_options)})
        reward = make_reward({"type": "reasoning_gym"})
        reward(["", ""], entry=prompts["entry"][:2])  # a task that cannot be scored is refused now
        splits = prompts.train_test_split(test_size=0.2, seed=seed)
        return splits["train"], splits["test"], [reward], "reward"
    if Path(name).suffix in TEXT_FILES:
        rows = text_continuations(name)
        splits = rows.train_test_split(test_size=0.2, seed=seed) if len(rows) > 4 else {"train": rows}
        return splits["train"], splits.get("test"), [], "reward"
    splits = _load_splits(recipe_args, name)
    if recipe_args.dataset_train_split not in splits:
        raise DatasetError(
            f"{name} has no split {recipe_args.dataset_train_split!r} (it has {sorted(splits)}): "
            "give --dataset_train_split"
        )
    return splits[recipe_args.dataset_train_split], splits.get(recipe_args.dataset_test_split), [], "reward"


def load_demonstrations(name: str, seed: int = 0) -> Dataset:
    """Demonstrations (`prompt` and `completion`, or `messages`): builtin:arithmetic, a text file, a data file or a set
    of the Hub.

    Raises:
        ConfigError, DatasetError: what is wrong with the name, and what is allowed.
    """
    if name == "builtin:arithmetic":
        from trl_ext.builtin.arithmetic import arithmetic_demonstrations

        return arithmetic_demonstrations(seed=seed)
    if name.startswith("builtin:"):
        raise ConfigError(f"sft_dataset_name = {name!r}: the built-in demonstrations are builtin:arithmetic")
    if Path(name).suffix in TEXT_FILES:
        return text_continuations(name)
    splits = _load_splits(RecipeArguments(), name)
    return splits["train"] if "train" in splits else next(iter(splits.values()))


def text_continuations(path: str, prompt_words: int = 12, completion_words: int = 24) -> Dataset:
    """A text file as `prompt` and `completion`: of each piece of a paragraph, its first words and those that follow.

    Paragraphs are what empty lines separate; what is left of one that is not a whole piece is left out.

    Raises:
        DatasetError: the file cannot be read, or no paragraph is long enough.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"dataset_name = {path!r} cannot be read: {error}") from None
    size, rows = prompt_words + completion_words, []
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        for start in range(0, len(words) - size + 1, size):
            piece = words[start : start + size]
            rows.append({"prompt": " ".join(piece[:prompt_words]), "completion": " " + " ".join(piece[prompt_words:])})
    if not rows:
        raise DatasetError(f"dataset_name = {path!r}: no paragraph has {size} words")
    return Dataset.from_list(rows)


def _load_splits(recipe_args: RecipeArguments, name: str) -> Any:
    file_format = FILE_FORMATS.get(Path(name).suffix)
    if file_format and not Path(name).is_file():
        raise DatasetError(f"dataset_name = {name!r}: no such file")
    if file_format and not Path(name).stat().st_size:
        raise DatasetError(f"dataset_name = {name!r} is empty: it must have a row for each prompt")
    try:
        if file_format:
            return load_dataset(file_format, data_files=name, streaming=recipe_args.dataset_streaming)
        return load_dataset(name, name=recipe_args.dataset_config, streaming=recipe_args.dataset_streaming)
    except Exception as error:  # the builders raise errors of a dozen kinds; the first line of each says what is wrong
        reason = " ".join(str(error.__cause__ or error).split())
        raise DatasetError(f"dataset_name = {name!r} cannot be loaded: {reason:.300}") from None


def _options(task_options: Any) -> dict[str, Any]:
    """A mapping from YAML as it is, a string from the command line as JSON."""
    try:
        options = json.loads(task_options) if isinstance(task_options, str) else task_options or {}
    except json.JSONDecodeError as error:
        raise ConfigError(f"task_options = {task_options!r}: not JSON ({error})") from None
    if not isinstance(options, dict):
        raise ConfigError(f"task_options = {task_options!r}: must be a JSON object")
    return options


def _check_chat(recipe_args: RecipeArguments, train: Any) -> None:
    """TRL's own rewards read the content of a message, and would raise at the first completion that is a text."""
    needy = [name for name in recipe_args.reward_funcs or () if name in TRL_REWARDS]
    first: dict[str, Any] = next(iter(train), {})
    if needy and isinstance(first.get("prompt"), str):
        raise ConfigError(
            f"reward_funcs: {needy[0]} scores replies to chat messages only, and the prompts of "
            f"{recipe_args.dataset_name} are texts: make them messages, or give a spec, such as --reward "
            '\'{"type": "math", "target": "solution"}\''
        )


def _load_reward(name: str) -> Callable[..., Any]:
    if name in TRL_REWARDS:
        return getattr(trl.rewards, name)  # type: ignore[no-any-return]
    module, _, function = name.rpartition(".")
    if module:
        try:
            return import_from_here(module, function)  # type: ignore[no-any-return]
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"reward_funcs: {name!r} cannot be imported ({error})") from None
    raise ConfigError(f"reward_funcs: no {name!r}; give {', '.join(TRL_REWARDS)}, or module.function")
