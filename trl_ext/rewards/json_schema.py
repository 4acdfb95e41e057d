"""Whether a completion is JSON, and JSON of the wanted shape."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from trl_ext.rewards.registry import register_reward

_FENCE = re.compile(r"```(?:json)?[ \t]*\r?\n(.*)```", re.DOTALL | re.IGNORECASE)


@register_reward("json_schema", leans_on="jsonschema", extra="rewards", cost="500 us")
class JsonSchema:
    """1 for JSON that is valid by `schema` (Draft 2020-12), `partial` for other JSON, 0 for other text.

    A code fence around the whole completion is taken off. Without a schema any JSON scores 1. NaN and Infinity are no
    JSON. What is nested too deeply to be read or checked scores 0. References to other documents are not fetched: they
    raise. `format` is not checked, as the draft has it by default.

    `pattern` and `patternProperties` are matched with the `regex` package in a budget of 1 s per completion, beyond
    which it scores 0; `additionalProperties` and `unevaluatedProperties` read `patternProperties` without that
    budget. `uniqueItems` takes linear time, where jsonschema compares all pairs of objects.
    """

    def __init__(self, schema: dict[str, Any] | None = None, partial: float = 0.5):
        from jsonschema import Draft202012Validator, SchemaError

        if not 0 <= partial <= 1:
            raise ValueError(f"partial = {partial}: must be from 0 to 1")
        if schema is not None:
            try:
                Draft202012Validator.check_schema(schema)
            except SchemaError as error:
                raise ValueError(f"schema{error.json_path[1:]} is no JSON Schema: {error.message}") from None
        self.schema, self.partial = schema, partial

    def __call__(self, completions: list[str]) -> list[float | None]:
        is_valid = None if self.schema is None else _schema_check(self.schema)
        return [self._score(text, is_valid) for text in completions]

    def _score(self, text: str, is_valid: Callable[[Any], bool] | None) -> float:
        try:
            value = _parse_json(text)
        except (ValueError, RecursionError):
            return 0.0
        try:
            return 1.0 if is_valid is None or is_valid(value) else self.partial
        except (RecursionError, TimeoutError):
            return 0.0
        except OverflowError:  # multipleOf of a number beyond the floats
            return self.partial


def _parse_json(text: str) -> Any:
    text = text.strip()
    fenced = _FENCE.fullmatch(text)
    return json.loads(fenced.group(1) if fenced else text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _schema_check(schema: dict[str, Any], budget: float = 1.0) -> Callable[[Any], bool]:
    """A function that says whether a value is valid and raises TimeoutError where the patterns take too long."""
    import regex
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend
    from referencing import Registry

    deadline = 0.0

    def found(pattern: str, text: str) -> bool:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return regex.search(pattern, text, timeout=left) is not None

    def check_pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
        if isinstance(value, str) and not found(pattern, value):
            yield ValidationError("does not match")

    def check_pattern_properties(validator: Any, patterns: dict[str, Any], value: Any, schema: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            for pattern, subschema in patterns.items():
                for key, inner in value.items():
                    if found(pattern, key):
                        yield from validator.descend(inner, subschema, path=key, schema_path=pattern)

    def check_unique(validator: Any, wanted: bool, value: Any, schema: Any) -> Iterator[Any]:
        if wanted and isinstance(value, list) and len({_hashable(item) for item in value}) < len(value):
            yield ValidationError("has repeated items")

    keywords = {
        "pattern": check_pattern,
        "patternProperties": check_pattern_properties,
        "uniqueItems": check_unique,
    }
    # An empty registry: the default one fetches references from the network.
    validator = extend(Draft202012Validator, keywords)(schema, registry=Registry())

    def is_valid(value: Any) -> bool:
        nonlocal deadline
        deadline = time.monotonic() + budget
        return bool(validator.is_valid(value))

    return is_valid


def _hashable(value: Any) -> Any:
    """Equal for values that JSON Schema calls equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return "object", frozenset((key, _hashable(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return "array", tuple(_hashable(inner) for inner in value)
    return ("boolean", value) if isinstance(value, bool) else value
