"""Environments by name, for the command line and the recipes."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from trl_ext.agents.environment import Environment, from_gymnasium
from trl_ext.errors import ConfigError, choices

_ENVIRONMENTS: dict[str, str | Callable[..., Environment]] = {
    "email_search": "trl_ext.agents.environments.email_search:EmailSearch",
    "game_2048": "trl_ext.agents.environments.game_2048:Game2048",
    "grid_world": "trl_ext.agents.environments.grid_world:GridWorld",
}


def register_environment(name: str, factory: str | Callable[..., Environment]) -> None:
    """Give an environment a name: `factory` is its class, or `"module:Class"`, imported at first use."""
    _ENVIRONMENTS[name] = factory


def list_environments() -> list[str]:
    return sorted(_ENVIRONMENTS)


def make_environment(name: str, **options: Any) -> Environment:
    """The environment of that name, or of `module:Class`, made with `options`. One of Gymnasium's is wrapped.

    Raises:
        ConfigError: there is none, or it does not take the options.
    """
    factory = _find(name)
    try:
        environment = factory(**options)
    except TypeError as error:
        raise ConfigError(f"environment {name!r} with {options}: {error}") from error
    if not (callable(getattr(environment, "reset", None)) and callable(getattr(environment, "step", None))):
        raise ConfigError(f"environment {name!r} has no methods 'reset' and 'step'")
    return environment if isinstance(environment, Environment) else from_gymnasium(environment)


def _find(name: str) -> Callable[..., Environment]:
    target = _ENVIRONMENTS.get(name, name)
    if callable(target):
        return target
    module, _, attribute = target.partition(":")
    if not attribute:
        raise ConfigError(f"no environment {name!r}; {choices(name, _ENVIRONMENTS)}; or give module:Class")
    try:
        found: Callable[..., Environment] = import_from_here(module, attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"environment {name!r} cannot be imported: {error}") from error
    return found


def import_from_here(module: str, attribute: str) -> Any:
    """What a module has, also one of the current folder, where a command's Python does not look by itself.

    Raises:
        ImportError, AttributeError: there is none.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return getattr(importlib.import_module(module), attribute)
