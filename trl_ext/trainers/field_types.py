"""Values of the wrong type in a config, refused before anything computes with them."""

from dataclasses import fields
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

from trl import GRPOConfig

from trl_ext.errors import ConfigError

# Of TRL's fields, those that we compute with.
_THEIRS = (
    "beta",
    "epsilon",
    "epsilon_high",
    "max_completion_length",
    "num_generations",
    "num_iterations",
    "steps_per_generation",
)
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", type(None): "unset"}


def check_types(config: Any) -> None:
    """Hold the numbers, truth values and strings of a config of ours to what its fields are annotated with.

    Raises:
        ConfigError: names the field, the value and what is allowed.
    """
    others = {field.name for field in fields(GRPOConfig)} - set(_THEIRS)
    hints = get_type_hints(type(config))
    for name in [field.name for field in fields(config) if field.name not in others]:
        value, kinds = getattr(config, name), get_args(hints[name]) or (hints[name],)
        if set(kinds) <= set(_WORDS) and not any(_is_a(value, kind) for kind in kinds):
            raise ConfigError(f"{name} = {value!r}: must be {', or '.join(_WORDS[kind] for kind in kinds)}")


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):  # which Python takes for a number
        return kind is bool
    return isinstance(value, Integral if kind is int else Real if kind is float else kind)
