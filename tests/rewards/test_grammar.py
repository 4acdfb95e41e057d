from concurrent.futures import ThreadPoolExecutor

import pytest
from harper import Linter

from trl_ext.errors import ConfigError
from trl_ext.rewards import make_reward
from trl_ext.rewards.grammar import MAX_CHARACTERS

RIGHT = "She goes to school every day. The results are in, and they look good."
WRONG = ["He go to school every days.", "I has an car.", "Could of been better.", "i think so.", "Is the the answer."]
HOSTILE = ["", " \t\n", "\x00\x01", "\u200b", "\ud800", "...", "a" * 1_000_000, "[" * 1_000_000, "🙂" * 500_000]
HOSTILE += [
    "word " * 200_000,
    "你好世界" * 200_000,
    "> " * 500_000,
    "مرحبا بالعالم",
    "\ud800 lone \udfff",
    "\u202e abc",
]


@pytest.fixture(scope="module")
def reward():
    return make_reward({"type": "grammar"})


def test_right_text_scores_1_and_each_wrong_one_less(reward):
    right, *wrong = reward([RIGHT, *WRONG])
    assert right == 1.0
    assert all(0 < score < 0.4 for score in wrong), wrong


def test_the_score_is_by_the_errors_that_harper_finds_per_100_words():
    text = "This is an test of the the linter, and the cat sat on the mat."
    kinds = [lint.lint_kind for lint in Linter().lint(text)]
    assert kinds == ["Miscellaneous", "Repetition"]
    density = 100 * len(kinds) / 15
    assert make_reward({"type": "grammar"}).score(text, None) == pytest.approx(5 / (5 + density))
    assert make_reward({"type": "grammar", "half": density}).score(text, None) == pytest.approx(0.5)


def test_more_errors_in_as_many_words_score_less_and_more_words_more(reward):
    one, two, diluted = reward(["I has an old cat.", "I has a old cat.", "I has an old cat. " + RIGHT])
    assert two < one < diluted < 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("We recieve it.", "Spelling"),
        ("He likes teh cat.", "Typo"),
        ("## What it is made of\n\nA cat.", "Capitalization"),
        ("We shall go now .", "Formatting"),
    ],
)
def test_spelling_headings_and_formatting_are_no_errors_of_grammar(reward, text, kind):
    assert [lint.lint_kind for lint in Linter().lint(text)] == [kind]
    assert reward([text]) == [1.0]


def test_marked_code_has_no_errors(reward):
    assert reward(["Run it:\n\n```\ni has a the the\n```\n", "Call `i has a` now."]) == [1.0, 1.0]


def test_text_without_words_scores_0(reward):
    assert reward(["", " \n", "...", "🙂", "\ud800"]) == [0.0] * 5


def test_hostile_texts_have_a_score_within_the_range(reward):
    assert all(0.0 <= score <= 1.0 for score in reward(HOSTILE))


def test_what_is_past_the_bound_does_not_count(reward):
    text = (RIGHT + " ") * (MAX_CHARACTERS // len(RIGHT) + 1)
    assert reward([text + "I has a apple. " * 100]) == reward([text]) == [1.0]


def test_a_batch_scores_as_its_rows_one_at_a_time_and_in_any_order(reward):
    texts = [RIGHT, *WRONG, RIGHT, ""]
    batch = reward(texts)
    assert batch == [reward.score(text, None) for text in texts]
    assert reward(texts[::-1]) == batch[::-1]


def test_threads_may_score_at_the_same_time():
    rewards = [make_reward({"type": "grammar"}) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda reward: reward([f"{text} {i}" for text in WRONG for i in range(20)]), rewards))
    assert all(batch == batches[0] for batch in batches)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"half": 0}, "half = 0.0: must be more than 0"), ({"half": float("inf")}, "finite"), ({"hlf": 1}, "half")],
)
def test_a_bad_option_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_reward({"type": "grammar", **options})
