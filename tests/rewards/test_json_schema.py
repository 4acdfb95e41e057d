import json
import urllib.request

import pytest
from jsonschema import Draft202012Validator

from trl_ext.errors import RewardError
from trl_ext.rewards import make_reward

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}, "age": {"type": "integer"}},
    "required": ["name"],
}


def score(completion, **spec):
    (value,) = make_reward({"type": "json_schema", **spec})([completion])
    return value


def test_valid_json_is_1_invalid_json_partial_and_other_text_0():
    spec = {"schema": PERSON}
    texts = ['{"name": "ada", "age": 3}', '{"age": 3}', '{"name": "A"}', "[]", '{"name": "ada"', "name: ada", ""]
    assert [score(text, **spec) for text in texts] == [1.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0]
    assert score("[]", **spec, partial=0.1) == 0.1
    assert score("[1, null]") == 1.0
    assert score("NaN") == score("[-Infinity]") == 0.0


def test_a_code_fence_around_the_json_is_taken_off():
    spec = {"schema": PERSON}
    assert score('\n```json\n{"name": "ada"}\n```\n', **spec) == 1.0
    assert score('```\r\n{"name": "ada"}```', **spec) == 1.0
    assert score('Here:\n```json\n{"name": "ada"}\n```', **spec) == 0.0


def test_deeply_nested_json_scores_0():
    schema = {"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "integer"}]}
    assert score("[[[1]]]", schema=schema) == 1.0
    assert score('[["a"]]', schema=schema) == 0.5
    for depth in (500, 100_000):
        assert score("[" * depth + "]" * depth, schema=schema) == 0.0


def test_numbers_beyond_the_floats_are_not_valid_multiples():
    assert score("1e999", schema={"multipleOf": 0.5}) == 0.5
    assert score("1.5", schema={"multipleOf": 0.5}) == 1.0


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        ([1, True, 0, False, "1", [1], [True], {"a": 1}, {"a": True}], {"uniqueItems": True}),
        ([1, 1.0], {"uniqueItems": True}),
        ([{"a": [1, 2], "b": 0}, {"b": 0, "a": [1.0, 2]}], {"uniqueItems": True}),
        ([1, 1], {"uniqueItems": False}),
        ("abc", {"pattern": "b"}),
        ("a\nc", {"pattern": "a.c"}),
        ({"ab": 1, "c": "x"}, {"patternProperties": {"^a": {"type": "integer"}}}),
        ({"ab": "x"}, {"patternProperties": {"^a": {"type": "integer"}}}),
    ],
)
def test_the_bounded_keywords_decide_as_jsonschema_does(value, schema):
    expected = Draft202012Validator(schema).is_valid(value)
    assert score(json.dumps(value), schema=schema) == (1.0 if expected else 0.5)


def test_a_pattern_in_the_schema_and_many_items_are_checked():
    bomb = {"items": {"pattern": "^(a|aa)+[bc]$"}}
    assert score(json.dumps(["a" * 200] * 100), schema=bomb) == 0.0
    assert score(json.dumps({"a" * 200: 1}), schema={"patternProperties": {"^(a|aa)+[bc]$": {}}}) == 0
    objects = json.dumps([{"a": i} for i in range(50_000)])
    assert score(objects, schema={"uniqueItems": True}) == 1.0


def test_a_reference_to_another_document_is_not_fetched(monkeypatch):
    fetched = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: fetched.append(args))
    with pytest.raises(RewardError, match="example"):
        score("1", schema={"$ref": "http://example.invalid/x.json"})
    assert fetched == []
