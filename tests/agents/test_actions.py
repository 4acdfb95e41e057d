import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.agents.actions import ChoiceParser, JsonParser, TagParser, TextParser, ToolCallParser, _last_json_object
from trl_ext.errors import ActionError, ConfigError

PARSERS = [
    TextParser(),
    ChoiceParser(["left", "right"]),
    TagParser("action"),
    JsonParser(["move"]),
    ToolCallParser(["search"]),
]


@pytest.mark.parametrize(
    ("parser", "text", "action"),
    [
        (TextParser(), " go \n", "go"),
        (ChoiceParser(["left", "right"]), "LEFT", "left"),
        (ChoiceParser(["left", "right"]), "I move left, then wait.", "left"),
        (ChoiceParser({"left": 0, "right": 1}), "right!", 1),
        (ChoiceParser(["u", "d"], exact=True), " u ", "u"),
        (ChoiceParser(["give up", "up"]), "give up", "give up"),
        (TagParser("move"), "First <move>a</move>, no: <move> b </move>.", "b"),
        (TagParser("move", inner=ChoiceParser(["b", "c"])), "<move>b</move>", "b"),
        (JsonParser(), 'so {"a": {"b": "}"}}', {"a": {"b": "}"}}),
        (JsonParser(), '```json\n{"a": 1}\n```', {"a": 1}),
        (JsonParser(), '{"a": 1} or rather {"a": 2}', {"a": 2}),
        (JsonParser(), 'the set {x} and {"a": 1}', {"a": 1}),
        (ToolCallParser(), '{"name": "f", "arguments": {"x": 1}}', {"name": "f", "arguments": {"x": 1}}),
        (ToolCallParser(), '{"name": "f", "parameters": {"x": 1}}', {"name": "f", "arguments": {"x": 1}}),
        (ToolCallParser(), '<tool_call>{"name": "f"}</tool_call>', {"name": "f", "arguments": {}}),
    ],
)
def test_a_text_becomes_an_action(parser, text, action):
    assert parser.parse(text) == action


@pytest.mark.parametrize(
    ("parser", "text", "message"),
    [
        (TextParser(), "  ", "The reply was empty."),
        (ChoiceParser(["left", "right"]), "left or right", "Reply with one of: left, right."),
        (ChoiceParser(["left", "right"]), "leftovers", "Reply with one of: left, right."),
        (ChoiceParser(["left", "right"], exact=True), "left.", "Reply with one of: left, right."),
        (TagParser("move"), "<move>a", "Write your action as <move>...</move>."),
        (TagParser("move"), "a</move>", "Write your action as <move>...</move>."),
        (TagParser("move"), "<move> </move>", "The reply was empty."),
        (JsonParser(), "[1, 2]", "Reply with one JSON object."),
        (JsonParser(), '{"a": ', "Reply with one JSON object."),
        (JsonParser(["a", "b"]), '{"a": 1}', "The JSON object lacks 'b'."),
        (ToolCallParser(), '{"name": 1}', "Reply with one tool call"),
        (ToolCallParser(["f"]), '{"name": "g"}', "There is no tool 'g'; the tools are: f."),
        (ToolCallParser(["f"]), '{"name": "f", "arguments": [1]}', "must be a JSON object"),
    ],
)
def test_a_text_that_is_no_action_says_what_was_expected(parser, text, message):
    with pytest.raises(ActionError) as error:
        parser.parse(text)
    assert message in str(error.value)


@given(st.text() | st.text(alphabet='{}[]":,<>/action move left right \\'))
def test_any_text_is_an_action_or_an_action_error(text):
    for parser in PARSERS:
        try:
            parser.parse(text)
        except ActionError as refused:
            message = str(refused)
            assert len(message) < 200  # it does not repeat the text


@pytest.mark.parametrize(
    "text", ["{" * 5000, '{"a":' * 5000, '{"a":' * 3000 + "1" + "}" * 3000, '{"a": ' + "9" * 5000 + "}"]
)
def test_hostile_json_is_no_action(text):
    with pytest.raises(ActionError):
        JsonParser(["b"]).parse(text)


def test_a_text_of_stray_braces_is_read_a_bounded_number_of_times(monkeypatch):
    """Else its time grows with the square of its length."""
    read, decode = [], json.JSONDecoder.raw_decode
    monkeypatch.setattr(json.JSONDecoder, "raw_decode", lambda self, *args: read.append(args) or decode(self, *args))
    for stray, found in ((200, {"move": 3}), (201, None)):
        read.clear()
        assert _last_json_object("{ " * stray + '{"move": 3}') == found
        assert len(read) == 201
    with pytest.raises(ActionError, match="Reply with one JSON object"):
        JsonParser().parse('{"a":' * 5000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextParser(on_invalid="ignore"), "on_invalid = 'ignore': must be one of observe, end, fail"),
        (lambda: TextParser(invalid_penalty=-1), "invalid_penalty = -1"),
        (lambda: TextParser(invalid_penalty=float("nan")), "invalid_penalty = nan"),
        (lambda: ChoiceParser([]), "choices: must name at least one action"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
