"""From JSON to a checked tree of components. Every error says where it is, what was found and what is allowed."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trl_ext.errors import ConfigError
from trl_ext.rewards.postprocess import Postprocessor
from trl_ext.rewards.registry import RewardType, get_reward_type
from trl_ext.rewards.text import Extract


class Common(BaseModel):
    """What any component may say, whatever its type."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str | None = Field(None, min_length=1, description="What its metric is called; its type if unset.")
    weight: float = Field(1.0, description="Its share in a weighted_sum. 0: a metric only.")
    target: str | list[str] = Field("target", description="The column with the reference; several columns: several.")
    extract: Extract | None = Field(None, description="The part of the completion that is scored.")
    when: dict[str, Any] = Field({}, description="Score only rows whose columns have these values (or one of a list).")
    postprocess: list[Postprocessor] = Field([], description="What is done to the scores, in order.")
    on_error: Literal["raise", "none"] = Field("raise", description="none: a batch that raises is not scored.")
    max_errors: int = Field(10, ge=0, description="With on_error none: how many batches may raise before the run ends.")
    timeout: float | None = Field(None, gt=0, description="Seconds that a batch may take; then it counts as raising.")
    cache: str | None = Field(None, min_length=1, description="A folder that keeps scores, for other runs as well.")

    @field_validator("target", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("must be the name of a column, or a list of names")
        return value


class SumOptions(BaseModel):
    """Options of weighted_sum, product and minimum."""

    model_config = ConfigDict(extra="forbid")
    components: list[dict[str, Any]] = Field(min_length=1)


class ConditionedOptions(BaseModel):
    """Options of conditioned: `reward` where `on` scores at least `threshold`, else `otherwise`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    reward: dict[str, Any]
    on: dict[str, Any]
    threshold: float = 0.5
    otherwise: float = 0.0


COMPOSITES: dict[str, type[BaseModel]] = {
    "weighted_sum": SumOptions,
    "product": SumOptions,
    "minimum": SumOptions,
    "conditioned": ConditionedOptions,
}


@dataclass
class Node:
    """A checked component. `reward_type` is None for a composite, whose parts are `children`."""

    type: str
    path: str
    common: Common
    options: dict[str, Any]
    spec: dict[str, Any]
    reward_type: RewardType | None = None
    children: list["Node"] = field(default_factory=list)


def load_spec(spec: dict[str, Any] | str | Path) -> dict[str, Any]:
    """A spec from a dict, a JSON string or the path of a JSON file; `{"REWARD": {...}}` is unwrapped.

    Raises:
        ConfigError: no such file, no JSON, or no JSON object.
    """
    if isinstance(spec, str | Path):
        text, source = str(spec), "spec"
        if not text.lstrip().startswith(("{", "[")):
            source = str(spec)
            try:
                text = Path(spec).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no name that a file can have
                reason = getattr(error, "strerror", None) or error
                raise ConfigError(f"reward spec {source!r} cannot be read: {reason}") from None
        try:
            spec = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"reward {source} is not JSON: {error}") from None
    if not isinstance(spec, dict):
        raise ConfigError(f"a reward spec must be a JSON object, this is a {type(spec).__name__}")
    if set(spec) == {"REWARD"}:
        return load_spec(spec["REWARD"])
    return {key: value for key, value in spec.items() if key != "$schema"}


def parse(spec: Any, path: str = "") -> Node:
    """Check a spec and everything in it.

    Raises:
        ConfigError: `components[2].postprocess[0].max = -1.0: must be greater than min (0.0)`, and so on.
    """
    where = path or "spec"
    if not isinstance(spec, dict):
        raise ConfigError(f"{where} = {spec!r}: must be an object with a 'type'")
    if not isinstance(spec.get("type"), str):
        raise ConfigError(f"{where}: needs a 'type' (a string)")
    name = spec["type"].lower()
    reward_type, options_model = None, COMPOSITES.get(name)
    if options_model is None:
        try:
            reward_type = get_reward_type(name)
        except ConfigError as error:
            raise ConfigError(f"{_join(path, 'type')}: {error}, {', '.join(COMPOSITES)}") from None
        options_model = reward_type.options
    _refuse_unknown_keys(spec, ["type", *Common.model_fields, *options_model.model_fields], path, name)
    shared = common_options(options_model)
    common: Common = _validate(Common, {key: spec[key] for key in spec if key in shared}, path)
    checked = _validate(options_model, {key: spec[key] for key in spec if key in options_model.model_fields}, path)
    options = {key: getattr(checked, key) for key in options_model.model_fields}
    node = Node(name, where, common, options, spec, reward_type)
    if reward_type is None:
        parts = options.get("components")
        named = (
            [(f"components[{index}]", part) for index, part in enumerate(parts)]
            if parts is not None
            else [("reward", options["reward"]), ("on", options["on"])]
        )
        node.children = [parse(part, _join(path, key)) for key, part in named]
    return node


def common_options(options: type[BaseModel]) -> list[str]:
    """The names of `Common` that a type leaves as they are: some have a `timeout` or a `cache` of their own."""
    return [name for name in Common.model_fields if name not in options.model_fields]


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _refuse_unknown_keys(spec: Iterable[str], known: list[str], path: str, name: str) -> None:
    for key in spec:
        if key not in known:
            close = difflib.get_close_matches(key, known)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known ones: {', '.join(known)}"
            raise ConfigError(f"{_join(path, key)}: no such option of {name!r}; {hint}")


def _validate(model: type[BaseModel], values: dict[str, Any], path: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error, path)) from None


def _one_line(error: ValidationError, path: str) -> str:
    """The first of pydantic's errors, with its place written as in the JSON."""
    first = error.errors()[0]
    where = path
    value = None
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif not (part in ("clip", "scale", "threshold", "invert", "squash", "ema_normalize") and where.endswith("]")):
            where = _join(where, part)  # the tag of a union is no place in the JSON
        value = first["input"]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and " = " in message:
        return _join(where, message)  # the check names the field itself
    if first["type"] == "missing":
        return f"{where}: must be given"
    if first["type"] == "extra_forbidden":
        return f"{where}: no such option"
    return f"{where} = {value!r}: {message[0].lower()}{message[1:]}"
