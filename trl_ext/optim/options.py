"""What a spec of an optimizer or a scheduler says: a name, and options that are checked against those of its class."""

import difflib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from trl_ext.errors import ConfigError, MissingExtraError, TrlExtError

Spec = str | Mapping[str, Any]


def parse_spec(spec: Spec, what: str) -> tuple[str, dict[str, Any]]:
    """`(name, options)` of a name, a dict with a `name` (or `what`, as in {"OPTIMIZER": ...}), or such a dict as JSON.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        try:
            spec = json.loads(spec)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{what}: this is not JSON: {error}") from None
    if isinstance(spec, str):
        return _plain(spec), {}
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{what} = {spec!r}: must be a name, or a dict with a 'name'")
    names = [key for key in spec if str(key).lower() in ("name", what)]
    if len(names) != 1 or not isinstance(spec[names[0]], str):
        raise ConfigError(f"{what} = {dict(spec)!r}: must have one 'name', a string")
    return _plain(spec[names[0]]), {str(key): value for key, value in spec.items() if key != names[0]}


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def parameters_of(function: Callable[..., Any], without: Iterable[str] = ()) -> dict[str, Any]:
    """The options that a class or a function takes, with their defaults (`inspect.Parameter.empty` where none)."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in without and parameter.kind not in kinds
    }


def check_options(
    options: Mapping[str, Any], known: Mapping[str, Any], where: str, aliases: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The options under the names that `known` has: keys may be upper-case or an alias, numbers may be strings.

    Args:
        known: names, with defaults that tell what a value has to be.
        where: what the options are of, for errors: "optimizer 'adamw'".

    Raises:
        ConfigError: an unknown option, one that is given twice, or a value of the wrong type.
    """
    names = {**{name.lower(): name for name in known}, **(aliases or {})}
    spelled: dict[str, str] = {}
    checked = {}
    for key, value in options.items():
        name = names.get(key.lower())
        if name is None:
            close = difflib.get_close_matches(key.lower(), names, n=2)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise ConfigError(f"{where}: no option {key!r}; {hint}known ones: {', '.join(known) or 'none'}")
        if name in spelled:
            raise ConfigError(f"{where}: {spelled[name]!r} and {key!r} are one option, given twice")
        spelled[name] = key
        checked[name] = _checked_value(value, known[name], f"{where}: {key}")
    return checked


def _checked_value(value: Any, default: Any, where: str) -> Any:
    if isinstance(value, str):
        value = _from_text(value)
    if isinstance(value, list):
        value = tuple(_from_text(part) if isinstance(part, str) else part for part in value)
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, float) and not math.isfinite(part):
            raise ConfigError(f"{where} = {value!r}: must be finite")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ConfigError(f"{where} = {value!r}: must be true or false")
    if _is_number(default) and not _is_number(value):
        raise ConfigError(f"{where} = {value!r}: must be a number")
    if isinstance(default, tuple) and not (
        isinstance(value, tuple) and len(value) == len(default) and all(map(_is_number, value))
    ):
        raise ConfigError(f"{where} = {value!r}: must be {len(default)} numbers")
    return value


def _from_text(text: str) -> Any:
    """Environment files and YAML (`1e-4`) give numbers and truth values as text."""
    if text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(value: Any, least: int, where: str) -> int:
    """`value` as an int that is at least `least`.

    Raises:
        ConfigError: it is not.
    """
    if not _is_number(value) or not math.isfinite(value) or value != int(value) or value < least:
        raise ConfigError(f"{where} = {value!r}: must be a whole number, at least {least}")
    return int(value)


@contextmanager
def errors_of(where: str) -> Iterator[None]:
    """What a library raises on options that it does not take becomes one line that says what it is about."""
    try:
        yield
    except TrlExtError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"{where}: {_one_line(error)}") from None
    except (ValueError, TypeError, NotImplementedError, ArithmeticError) as error:
        raise ConfigError(f"{where}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
