"""What recipes/agent.py trains on: an environment's episodes, and a tiny model that has seen some, badly played."""

import contextlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from trl import GRPOConfig, ModelConfig

from trl_ext.agents.environment import Environment
from trl_ext.agents.environment_reward import environment_reward
from trl_ext.agents.registry import list_environments, make_environment
from trl_ext.errors import ConfigError
from trl_ext.recipe.arguments import RecipeArguments, words_of
from trl_ext.recipe.task import Task, fit_start_model, load_model

WALKS, CLOSER, FIT_STEPS = 3000, 0.5, 400  # what the tiny model is fitted to, and for how many steps


@dataclass
class AgentArguments(RecipeArguments):
    """Arguments of recipes/agent.py: those of every recipe, and these."""

    dataset_name: str | None = field(
        default="env", metadata={"help": "Always env: the rows that the environment itself begins from."}
    )
    trainer: str = field(default="cispo", metadata={"help": "cispo, ppo (with a reward for each turn) or grpo."})
    environment: str = field(  # in a YAML of TRL's, `env` are environment variables
        default="grid_world",
        metadata={"aliases": ["--env"], "help": f"{', '.join(list_environments())}, or module:Class."},
    )
    env_options: str | None = field(default=None, metadata={"help": "The environment's options, as JSON."})
    episodes: int = field(default=4096, metadata={"help": "How many rows to train on."})
    heldout_episodes: int = field(default=0, metadata={"help": "How many more are measured before and after."})
    max_turns: int | None = field(
        default=None, metadata={"help": "Turns of the model in an episode. Unset: the environment's own, or 10."}
    )
    max_turn_tokens: int | None = field(default=None, metadata={"help": "Tokens of the model in a turn."})
    step_timeout: float = field(default=60.0, metadata={"help": "Seconds for a step of the environment."})
    max_failures: float = field(default=0.5, metadata={"help": "The share of episodes that may fail."})
    serve: str | None = field(
        default=None,
        metadata={"help": "HOST:PORT. Episodes are played by `trl-ext worker` and by agents that connect there."},
    )
    serve_token: str | None = field(
        default=None, metadata={"help": "What they need to connect; better in the environment: TRL_EXT_TOKEN."}
    )
    public_url: str | None = field(
        default=None, metadata={"help": "How the server is reached, where a reverse proxy stands before it."}
    )
    episode_timeout: float = field(
        default=600.0, metadata={"help": "Seconds for an episode that is played elsewhere, without the policy's."}
    )
    wait_for: float = field(
        default=1.0, metadata={"help": "The share of a batch's episodes after which the others are left out (--serve)."}
    )
    max_policy_lag: int = field(
        default=0, metadata={"help": "For how many steps such episodes are played on, for a later batch (--serve)."}
    )


def chosen_trainer(args: Sequence[str], choices: Sequence[str]) -> str:
    """The `--trainer` of a command line, of its config file, or the first choice: it decides on the other options.

    Raises:
        ConfigError: no such trainer.
    """
    given = dict(itertools.pairwise(words_of(args)))
    name = given.get("--trainer")
    if name is None and "--config" in given:
        with contextlib.suppress(OSError, ValueError, AttributeError, yaml.YAMLError):  # who parses the rest says so
            name = yaml.safe_load(Path(given["--config"]).read_text()).get("trainer")
    if name is not None and name not in choices:
        raise ConfigError(f"trainer = {name!r}: must be one of {', '.join(choices)}")
    return name or choices[0]


def default_config(args: Sequence[str], trainer: str) -> str:
    """The config of a command line that names neither one nor a model: other environments than the grid need words."""
    given = dict(itertools.pairwise(words_of(args)))
    if {given.get("--env"), given.get("--environment")} - {"grid_world", None}:
        return "agent_smollm2.yaml"
    return "agent_ppo.yaml" if trainer == "ppo" else "agent.yaml"


def environment_of(agent_args: AgentArguments) -> Environment:
    """The environment that the arguments name.

    Raises:
        ConfigError: there is none, or it does not take the options.
    """
    options: Any = agent_args.env_options or {}  # a mapping, from a YAML
    try:
        options = json.loads(options) if isinstance(options, str) else options
    except json.JSONDecodeError as error:
        raise ConfigError(f"env_options = {agent_args.env_options!r}: not JSON ({error})") from None
    if not isinstance(options, dict):
        raise ConfigError(f"env_options = {agent_args.env_options!r}: must be a JSON object")
    return make_environment(agent_args.environment, **options)


def load_agent_task(agent_args: AgentArguments, model_args: ModelConfig, training_args: GRPOConfig) -> Task:
    """The model, the rows and the environment's reward.

    `builtin:tiny` is fitted to walks in grid_world of which some steps lead closer and the others anywhere.

    Raises:
        ConfigError: what is wrong with a name or an option, and what is allowed.
    """
    if agent_args.dataset_name != "env":
        raise ConfigError(f"dataset_name = {agent_args.dataset_name!r}: this recipe plays the rows of --env")
    for name, least in {"episodes": 1, "heldout_episodes": 0}.items():
        if (count := getattr(agent_args, name)) < least:
            raise ConfigError(f"{name} = {count}: must be at least {least}")
    environment = environment_of(agent_args)
    rows = environment.rows(agent_args.episodes + agent_args.heldout_episodes, training_args.seed)
    dataset = Dataset.from_list([{**row, "prompt": ""} for row in rows])
    train = dataset.select(range(agent_args.episodes))
    heldout = dataset.select(range(agent_args.episodes, len(dataset))) if agent_args.heldout_episodes else None
    if agent_args.reward or agent_args.reward_funcs:
        raise ConfigError("this recipe has the environment's own reward: leave out --reward and --reward_funcs")
    if model_args.model_name_or_path == "builtin:tiny":
        model = _fit_tiny(agent_args, training_args)
    else:
        model = load_model(str(model_args.model_name_or_path), training_args)
    measure = 0 if heldout is None else agent_args.heldout_episodes
    return Task(model, train, heldout, [environment_reward], "success", measure, metric="eval_episode/success")


def _fit_tiny(agent_args: AgentArguments, training_args: GRPOConfig) -> str:
    from trl_ext.agents.environments.grid_world import demonstrations

    if agent_args.environment != "grid_world":
        raise ConfigError(
            f"builtin:tiny has learnt to read grid_world only, not {agent_args.environment!r}: "
            "give --model_name_or_path, e.g. builtin:smollm2"
        )
    return fit_start_model(
        training_args,
        f"walks of which {CLOSER:.0%} of the steps are sure to lead closer",
        lambda: whole_walks(demonstrations(WALKS, CLOSER, training_args.seed)),
        steps=FIT_STEPS,
    )


def whole_walks(turns: list[dict[str, str]]) -> Dataset:
    """Demonstrated turns, whose prompts grow with a walk, as a text for each walk.

    A model that is fitted to the whole text learns from the places, too, what a letter does: it needs far fewer steps
    than one that is fitted to the letters alone, and has more to begin with.
    """
    following = [*turns[1:], {"prompt": "", "completion": ""}]
    return Dataset.from_list(
        [
            {"text": turn["prompt"] + turn["completion"]}
            for turn, after in zip(turns, following, strict=True)
            if len(after["prompt"]) <= len(turn["prompt"])
        ]
    )
