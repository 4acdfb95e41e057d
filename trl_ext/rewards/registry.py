"""The registry of reward types: a name, the options that a spec may give it, and what a user wants to know of it."""

import importlib
import inspect
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, create_model

from trl_ext.errors import ConfigError, choices

# Modules that register the built-in types when they are imported.
FAMILIES = (
    "similarity",
    "reference",
    "meteor",
    "structure",
    "json_schema",
    "entities",
    "diversity",
    "style",
    "grammar",
    "numeric",
    "mathematics",
    "code",
    "reasoning_gym",
    "classifiers",
    "classifier_presets",
    "lexicons",
    "entailment",
    "judge",
    "ruler",
    "external",
    "embedding",
    "relevance",
    "language_model",
    "reward_model",
)

COMPOSITE_NAMES = ("weighted_sum", "product", "minimum", "conditioned")

# What a scorer is called with beside its options: never an option of a spec.
_BATCH_PARAMETERS = ("self", "completions", "target", "prompts")

Registered = TypeVar("Registered", bound=Callable[..., Any])


@dataclass(frozen=True)
class RewardType:
    """A registered reward. `make(**options)` gives its scorer, which maps a batch to one float or None per completion.

    `range` is (worst, best). `per_completion` is False for a reward that compares the completions of a batch, `waits`
    True for one that waits for a server or other processes.
    """

    name: str
    make: Callable[..., Callable[..., list[float | None]]]
    options: type[BaseModel]
    summary: str
    documentation: str
    range: tuple[float, float]
    leans_on: str
    extra: str | None
    needs_model: bool
    cost: str
    per_completion: bool
    waits: bool
    aliases: tuple[str, ...]


_TYPES: dict[str, RewardType] = {}
_ALIASES: dict[str, str] = {}


def register_reward(
    name: str,
    *,
    aliases: tuple[str, ...] = (),
    range: tuple[float, float] = (0.0, 1.0),
    leans_on: str = "-",
    extra: str | None = None,
    needs_model: bool = False,
    cost: str = "-",
    per_completion: bool = True,
    waits: bool = False,
) -> Callable[[Registered], Registered]:
    """Decorator that registers a function or a class as the reward type `name`.

    A function is the scorer: `(completions, target=None, prompts=None, **columns) -> list[float | None]`. Completions
    and prompts are text, plain or from chat; `target` is the reference of each completion (or a list of references);
    the columns are those of the dataset that it names. None means "cannot be scored". A class takes its options in
    `__init__` (these are what a spec may contain) and is such a function when called.

    Args:
        range: the worst and the best value.
        per_completion: False if a score depends on the other completions of the batch.
        waits: True if it waits for a server or other processes: it is called in a thread, beside those that compute.
        leans_on, extra, needs_model, cost: for the tables in the docs: a package, the extra of trl-ext that installs
            it, whether a model is loaded, and the time per completion.

    Raises:
        ConfigError: the name or an alias is taken.
    """

    def register(scorer: Registered) -> Registered:
        if not scorer.__module__.startswith("trl_ext."):
            _import_families()  # first come, so that their names are taken
        for taken in (name, *aliases):  # `weighted_sum` and kin are no types, but names in a spec all the same
            if taken in _TYPES or taken in _ALIASES or taken in COMPOSITE_NAMES:
                raise ConfigError(f"reward type {taken!r} is registered already: choose another name")
        is_class = inspect.isclass(scorer)
        documentation = inspect.cleandoc(scorer.__doc__ or "")
        _TYPES[name] = RewardType(
            name=name,
            make=scorer if is_class else (lambda: scorer),
            options=_options_model(name, scorer) if inspect.isclass(scorer) else create_model(name, __config__=_STRICT),
            summary=documentation.partition("\n")[0],
            documentation=documentation,
            range=range,
            leans_on=leans_on,
            extra=extra,
            needs_model=needs_model,
            cost=cost,
            per_completion=per_completion,
            waits=waits,
            aliases=aliases,
        )
        _ALIASES.update(dict.fromkeys(aliases, name))
        return scorer

    return register


_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def _options_model(name: str, scorer: type) -> type[BaseModel]:
    hints = typing.get_type_hints(scorer.__init__)  # type: ignore[misc]
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(scorer).parameters.values():
        if parameter.name not in _BATCH_PARAMETERS and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            required = parameter.default is inspect.Parameter.empty
            fields[parameter.name] = (hints.get(parameter.name, Any), ... if required else parameter.default)
    with warnings.catch_warnings():
        # an option may be called `schema`: pydantic warns that it hides a deprecated method, which nobody calls
        warnings.filterwarnings("ignore", message="Field name .* shadows an attribute in parent")
        return create_model(name, __config__=_STRICT, **fields)


def get_reward_type(name: str) -> RewardType:
    """The registered type of that name or alias.

    Raises:
        ConfigError: there is none; it says which are close.
    """
    _import_families()
    known = {**{name: name for name in _TYPES}, **_ALIASES}
    if name not in known:
        raise ConfigError(f"no reward type {name!r}; {choices(name, known)}")
    return _TYPES[known[name]]


def list_rewards() -> list[str]:
    """The names of all registered reward types, sorted."""
    _import_families()
    return sorted(_TYPES)


def _import_families() -> None:
    for family in FAMILIES:
        importlib.import_module(f"trl_ext.rewards.{family}")
