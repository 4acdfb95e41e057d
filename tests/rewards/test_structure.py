import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trl.rewards import think_format_reward

from trl_ext.errors import ConfigError
from trl_ext.rewards import make_reward

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}, "age": {"type": "integer"}},
    "required": ["name"],
}
SPECS = [
    {"type": "length", "max": 5, "soft": 5},
    {"type": "length", "unit": "characters", "min": 3},
    {"type": "length", "max_tokens": 4},
    {"type": "format", "pattern": r"(\w+\s?)+\.", "timeout": 0.2},
    {"type": "format", "pattern": "[0-9]", "mode": "search"},
    {"type": "json_schema", "schema": PERSON},
    {"type": "json_schema"},
    {"type": "numbered_list"},
    {"type": "numbered_list", "mode": "only", "max_items": 3},
    {"type": "think_format"},
    {"type": "entity_consistency"},
    {"type": "entity_consistency", "source": "target"},
]
HOSTILE = [
    "",
    "  \n\t ",
    "\x00" * 10,
    "\ud800 \ud800.",
    "a" * 1_000_000,
    "a " * 500_000,
    "1. A\n" * 200_000,
    "[" * 100_000,
    "[" * 500 + "]" * 500,
    "```json\n" + "9" * 5000 + "\n```",
    "<think>" * 100_000,
    "مرحبا ١٢٣. بالعالم",
    "🙂" * 50,
    "\u202e 1. abc",
]
ORDINARY = [
    "I met Ada Lovelace in 1843.",
    "1. a\n2. b",
    '{"name": "ada"}',
    "<think>x</think>y",
    "",
    "It was Paris, 12 km on.",
]


def score(completion, target=None, prompt="", **spec):
    (value,) = make_reward(spec)([completion], prompts=[prompt], target=[target])
    return value


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_hostile_texts_have_a_score_within_the_range_or_none(spec):
    reward = make_reward(spec)
    for text in HOSTILE:
        (value,) = reward([text], prompts=["Ada wrote 12 notes."], target=["Ada \ud800"])
        assert value is None or 0.0 <= value <= 1.0


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_batch_scores_as_its_rows_one_at_a_time(spec):
    reward = make_reward(spec)
    prompt = "Ada Lovelace lived from 1815 in London."
    together = reward(ORDINARY, prompts=[prompt] * len(ORDINARY), target=[prompt] * len(ORDINARY))
    assert together == [reward([t], prompts=[prompt], target=[prompt])[0] for t in ORDINARY]
    alone = [reward.score(text, prompt, prompt) for text in ORDINARY]
    assert together == [None if value != value else value for value in alone]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "length"}, "min = None: must be given, or max"),
        ({"type": "length", "min": -1}, "min = -1: must be 0 or more"),
        ({"type": "length", "min": 3, "max": 2}, r"max = 2: must be at least min \(3\)"),
        ({"type": "length", "max": 2, "soft": -1}, "soft = -1: must be 0 or more"),
        ({"type": "length", "max": 2, "max_tokens": 3}, "max_tokens = 3"),
        ({"type": "length", "unit": "characters", "max_tokens": 3}, "max_tokens = 3"),
        ({"type": "length", "max": 2, "tokenizer": "x"}, "tokenizer = 'x'"),
        ({"type": "length", "max": 2, "unit": "lines"}, "unit = 'lines'"),
        ({"type": "format"}, "pattern: must be given"),
        ({"type": "format", "pattern": "("}, "malformed"),
        ({"type": "format", "pattern": "a", "timeout": 0}, "timeout = 0"),
        ({"type": "json_schema", "partial": 1.5}, "partial = 1.5"),
        ({"type": "json_schema", "schema": {"type": "strin"}}, "schema.type is no JSON Schema: 'strin'"),
        ({"type": "json_schema", "schema": {"pattern": "("}}, "schema.pattern is no JSON Schema"),
        ({"type": "numbered_list", "min_items": 0}, "min_items = 0"),
        ({"type": "numbered_list", "min_items": 3, "max_items": 2}, "max_items = 2"),
        ({"type": "think_format", "strict": True}, "no such option"),
        ({"type": "entity_consistency", "source": "answer"}, "source = 'answer'"),
    ],
)
def test_bad_options_are_refused_in_one_line(spec, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_reward(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("unit", "inside", "below", "above"),
    [
        ("words", "don't go now", "go", "a b c d"),
        ("characters", "abc", "a", "abcd"),
        ("tokens", "go, now", "a", "a, b."),
    ],
)
def test_length_is_1_in_the_band_and_0_outside(unit, inside, below, above):
    spec = {"type": "length", "unit": unit, "min": 2, "max": 3}
    assert [score(text, **spec) for text in (inside, below, above, "")] == [1.0, 0.0, 0.0, 0.0]


@settings(deadline=None, database=None, derandomize=True)
@given(st.text(st.characters(codec="ascii") | st.sampled_from(" \t\n\x0b\x0c\r\x1c\x1f\x85\u2003"), max_size=30))
def test_words_are_what_split_gives(text):
    count = len(text.split())
    assert score(text, type="length", min=count, max=count) == 1.0


def test_soft_length_falls_linearly_on_both_sides():
    spec = {"type": "length", "min": 4, "max": 6, "soft": 4}
    assert [score("w " * n, **spec) for n in (0, 1, 3, 4, 6, 7, 9, 10, 11)] == [0, 0.25, 0.75, 1, 1, 0.75, 0.25, 0, 0]


def test_max_tokens_counts_the_tokens_of_the_tokenizer(tiny):
    text = "The quick brown fox, 12345 \ud800 times."
    ids = AutoTokenizer.from_pretrained(tiny)(text.replace("\ud800", "?"), add_special_tokens=False).input_ids
    assert len(ids) > len(text.split())
    assert score(text, type="length", max_tokens=len(ids), tokenizer=tiny) == 1.0
    assert score(text, type="length", max_tokens=len(ids) - 1, tokenizer=tiny) == 0.0
    assert score(text, type="length", min=len(ids), unit="tokens", tokenizer=tiny) == 1.0
    assert score("a" * 1_000_000, type="length", max_tokens=9, tokenizer=tiny) == 0.0


def test_format_matches_the_whole_text_or_a_part_across_lines():
    whole = {"type": "format", "pattern": "<a>.*</a>"}
    assert [score(text, **whole) for text in ("<a>1\n2</a>", "x <a>1</a>", "<a>1", "")] == [1.0, 0.0, 0.0, 0.0]
    assert score("x <a>1</a>", **whole, mode="search") == 1.0


def test_a_pattern_that_takes_too_long_scores_0():
    bomb = {"type": "format", "pattern": "(a|aa)+[bc]", "timeout": 0.2}
    assert score("a" * 20 + "c", **bomb) == 1.0
    assert score("a" * 200 + "d", **bomb) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Steps:\n1. a\n2. b\n3. c\nDone.", 1.0),
        ("1) a\n\n  2) b", 1.0),
        ("1. a\n   more\n2. b\n    1. inner\n3. c", 1.0),
        ("1. a\n2. b\n4. c\n3. d", 0.75),
        ("1. a\n1. b\n1. c", 0.0),
        ("2. a\n3. b", 0.0),
        ("1. a", 0.0),
        ("1.a\n2.b", 0.0),
        ("It is 1. and 2. here", 0.0),
        ("", 0.0),
    ],
)
def test_numbered_list_is_the_share_of_items_in_order(text, expected):
    assert score(text, type="numbered_list") == expected


def test_numbered_list_only_refuses_other_lines_and_too_many_items():
    only = {"type": "numbered_list", "mode": "only"}
    assert score("1. a\n   more\n\n2. b\n", **only) == 1.0
    assert (
        score("Steps:\n1. a\n2. b", **only)
        == score("1. a\n2. b\nDone.", **only)
        == score("  x\n1. a\n2. b", **only)
        == 0
    )
    assert score("1. a\n2. b\n3. c", type="numbered_list", max_items=2) == 0.0
    assert score("1. a", type="numbered_list", min_items=1) == 1.0


def test_think_format_is_trls():
    texts = [
        "<think>a\nb</think>c",
        "<think>a</think>",
        "a",
        "x<think>a</think>",
        "<think>a<think>b</think>",
        "<think>",
        "",
    ]
    expected = think_format_reward([[{"content": text}] for text in texts])
    assert make_reward({"type": "think_format"})(texts) == expected == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert make_reward({"type": "think_format"})([[{"role": "assistant", "content": texts[0]}]]) == [1.0]
