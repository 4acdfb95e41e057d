"""What the registry has, as a table, a page per type, and a JSON Schema."""

import inspect
import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from trl_ext.rewards.composites import combine
from trl_ext.rewards.registry import RewardType, get_reward_type, list_rewards
from trl_ext.rewards.spec import COMPOSITES, Common, common_options

COLUMNS = ("type", "range", "leans on", "extra", "model", "cost", "what it is")


def catalog() -> list[tuple[str, ...]]:
    """A row per registered type, in the order of `COLUMNS`; the range is worst .. best."""
    return [_row(get_reward_type(name)) for name in list_rewards()]


def catalog_table() -> str:
    """The catalog as aligned text."""
    rows = [COLUMNS, *catalog()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS) - 1)]
    return "\n".join("  ".join([*map(str.ljust, row[:-1], widths), row[-1]]) for row in rows)


def catalog_markdown() -> str:
    """The catalog as a Markdown table; `docs/rewards.md` holds it, and a test holds that current."""
    cells = [COLUMNS, tuple("---" for _ in COLUMNS), *((f"`{row[0]}`", *row[1:]) for row in catalog())]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def _row(reward: RewardType) -> tuple[str, ...]:
    worst, best = (f"{bound:g}" for bound in reward.range)
    name = ", ".join([reward.name, *reward.aliases])
    needs = "yes" if reward.needs_model else "no"
    return name, f"{worst} .. {best}", reward.leans_on, reward.extra or "-", needs, reward.cost, reward.summary


def describe(name: str) -> str:
    """What a type or a composite is, its options with their defaults, and a spec that uses it.

    Raises:
        ConfigError: there is no such type.
    """
    name = name.lower()  # as specs are read
    if name in COMPOSITES:
        options = COMPOSITES[name]
        lines = [name, "", inspect.cleandoc(combine.__doc__ or "")]
    else:
        reward = get_reward_type(name)
        name, options = reward.name, reward.options
        lines = [name, "", reward.documentation, ""]
        lines += [f"{column}: {cell}" for column, cell in zip(COLUMNS[1:-1], _row(reward)[1:-1], strict=True)]
    lines += ["", "Options:", *_options(options)]
    lines += ["", "Options of every type:", *_options(Common, common_options(options))]
    required = {key: "..." for key, field in options.model_fields.items() if field.is_required()}
    example = {"type": name, **required, "weight": 1.0}
    return "\n".join([*lines, "", "Example:", f"  {json.dumps(example)}"])


def _options(model: type[BaseModel], names: Sequence[str] | None = None) -> list[str]:
    described = []
    for key in model.model_fields if names is None else names:
        field = model.model_fields[key]
        kind = field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation)
        kind = re.sub(r"Annotated\[([^,]*), .*\]", r"\1]", kind)  # a union, without what tells its members apart
        kind = re.sub(r"(\w+\.)+(?=\w)", "", kind)
        default = "required" if field.is_required() else f"default {field.default!r}"
        described.append(f"  {key} ({kind}, {default})" + (f": {field.description}" if field.description else ""))
    return described or ["  none"]


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a spec: one object per type, by its `type`."""
    definitions: dict[str, Any] = {}

    def properties(model: type[BaseModel]) -> dict[str, Any]:
        schema = model.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(schema.pop("$defs", {}))
        return schema

    common = properties(Common)["properties"]
    common["extract"] = {"anyOf": [{"enum": ["think", "boxed"]}, *common["extract"]["anyOf"]]}  # its short form
    common["$schema"] = {"type": "string"}
    types: dict[str, tuple[type[BaseModel], str]] = {name: (model, "") for name, model in COMPOSITES.items()}
    for name in list_rewards():
        reward = get_reward_type(name)
        types |= dict.fromkeys((name, *reward.aliases), (reward.options, reward.summary))
    for name, (model, summary) in types.items():
        own = properties(model)
        options = own.get("properties", {})
        for key, nested in (("components", {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/spec"}}),
                            ("reward", {"$ref": "#/$defs/spec"}), ("on", {"$ref": "#/$defs/spec"})):  # fmt: skip
            if name in COMPOSITES and key in options:
                options[key] = nested
        definitions[f"type:{name}"] = {
            "type": "object",
            "description": summary,
            "properties": {"type": {"const": name}, **common, **options},
            "required": ["type", *own.get("required", [])],
            "additionalProperties": False,
        }
    definitions["spec"] = {"oneOf": [{"$ref": f"#/$defs/type:{name}"} for name in types]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "trl-ext reward spec",
        "$ref": "#/$defs/spec",
        "$defs": definitions,
    }


if __name__ == "__main__":  # bring the table in docs/rewards.md up to date
    import pathlib

    docs = pathlib.Path(__file__).parents[2] / "docs" / "rewards.md"
    before, _, rest = docs.read_text().partition("<!-- catalog -->\n")
    docs.write_text(
        f"{before}<!-- catalog -->\n{catalog_markdown()}\n<!-- /catalog -->{rest.partition('<!-- /catalog -->')[2]}"
    )
