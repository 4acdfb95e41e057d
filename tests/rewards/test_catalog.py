from pathlib import Path

import jsonschema
import pytest

from tests.rewards.test_spec import BAD
from trl_ext.errors import ConfigError
from trl_ext.rewards import list_rewards, make_reward
from trl_ext.rewards.catalog import catalog, catalog_markdown, catalog_table, describe, json_schema
from trl_ext.rewards.registry import get_reward_type
from trl_ext.rewards.spec import COMPOSITES

DOCS = Path(__file__).parents[2] / "docs" / "rewards.md"
BEGIN, END = "<!-- catalog -->\n", "\n<!-- /catalog -->"


def test_the_table_in_the_docs_is_that_of_the_registry():
    """To bring it up to date: python -m trl_ext.rewards.catalog"""
    text = DOCS.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == catalog_markdown()


def test_every_type_says_what_it_is_and_what_it_costs():
    for name, row in zip(list_rewards(), catalog(), strict=True):
        assert all(cell for cell in row), name
        assert row[-1].endswith(".") or row[-1].endswith(":"), name
        reward = get_reward_type(name)
        assert reward.range[0] != reward.range[1]
        assert reward.cost != "-", name


def test_the_text_table_is_aligned():
    lines = catalog_table().splitlines()
    starts = [line.index(name) for line, name in zip(lines, ["type", *list_rewards()], strict=True)]
    assert set(starts) == {0}
    assert len(lines) == 1 + len(list_rewards())


@pytest.mark.parametrize("name", list_rewards())
def test_a_page_has_the_options_and_an_example(name):
    page = describe(name)
    assert page.startswith(name)
    for option in get_reward_type(name).options.model_fields:
        assert f"  {option} (" in page
    assert "postprocess (list[Clip | Scale | Threshold | Invert | Squash | EMANormalize], default [])" in page
    with pytest.raises(ConfigError):
        describe(name + "_")


@pytest.mark.parametrize("name", COMPOSITES)
def test_what_combines_components_has_a_page_too(name):
    page = describe(name.upper())
    assert page.startswith(f"{name}\n")
    assert "A None counts as TRL" in page
    for option in COMPOSITES[name].model_fields:
        assert f"  {option} (" in page
    assert f'{{"type": "{name}", ' in page


def test_the_schema_takes_what_make_reward_takes_and_refuses_what_it_refuses():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = {
        "type": "weighted_sum",
        "components": [
            {"type": "exact_match", "normalize": True, "weight": 2, "extract": "boxed", "when": {"kind": "math"}},
            {"type": "conditioned", "reward": {"type": "jaccard"}, "on": {"type": "token_f1"}, "threshold": 0.1},
        ],
        "postprocess": [{"type": "clip", "min": 0, "max": 1}, {"type": "ema_normalize"}],
    }
    make_reward(good)
    assert validator.is_valid(good)
    structural = [spec for spec, message in BAD if "no such" in message or "must be given" in message]
    assert len(structural) == 4
    assert not any(validator.is_valid(spec) for spec in structural)
