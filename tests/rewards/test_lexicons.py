import pytest
from glin_profanity import Filter
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from trl_ext.errors import ConfigError
from trl_ext.rewards import make_reward
from trl_ext.rewards.lexicons import MAX_CHARACTERS

TYPES = ["sentiment_lexicon", "offensiveness_lexicon"]
SENTENCES = [
    "VADER is VERY smart, handsome, and funny!!!",
    "The plot was good, but the end was bad.",
    "Not bad at all :)",
]
SENTENCES += ["It was made in 2019.", "At least it isn't a horrible book?", "I'm sad 😢", "terrible"]
HOSTILE = ["", " \t\n", "\x00", "\ud800", "a" * 1_000_000, "good but " * 100_000, "🙂" * 500_000, "." * 1_000_000]
HOSTILE += [
    "f u c k " * 100_000,
    "f*ck " * 200_000,
    "&#102;" * 100_000,
    "مرحبا بالعالم",
    "\u202e abc",
    "\n" * 1_000_000,
]


@pytest.mark.parametrize("text", SENTENCES)
def test_the_sentiment_of_a_sentence_is_vaders(text):
    compound = SentimentIntensityAnalyzer().polarity_scores(text)["compound"]
    assert make_reward({"type": "sentiment_lexicon"}).score(text, None) == pytest.approx((1 + compound) / 2)
    negative = make_reward({"type": "sentiment_lexicon", "target_label": "negative"})
    assert negative.score(text, None) == pytest.approx((1 - compound) / 2)


def test_the_sentiment_of_a_text_is_the_mean_over_its_sentences():
    compounds = [SentimentIntensityAnalyzer().polarity_scores(text)["compound"] for text in SENTENCES]
    expected = (1 + sum(compounds) / len(compounds)) / 2
    for space in (" ", "\n", "\n\n  "):
        text = space.join(sentence if sentence[-1] in ".!?" else f"{sentence}\n" for sentence in SENTENCES)
        assert make_reward({"type": "sentiment_lexicon"}).score(text, None) == pytest.approx(expected)


def test_good_is_above_neutral_and_bad_below():
    good, bad, *neutral = make_reward({"type": "sentiment_lexicon"})(
        ["I love it, it is great.", "I hate it, it is awful.", "It is a table.", "", " \n"]
    )
    assert good > 0.8 > 0.2 > bad
    assert neutral == [0.5, 0.5, 0.5]


def test_each_offensive_word_counts_each_time():
    clean, once, twice, three = make_reward({"type": "offensiveness_lexicon"})(
        ["The class will pass in Scunthorpe.", "What the Fuck is that?", "shit, shit", "you bastard, shit, bitch"]
    )
    assert (clean, once) == (1.0, 0.5)
    assert (twice, three) == pytest.approx((1 / 3, 1 / 4))


@pytest.mark.parametrize("text", ["f.u.c.k", "fück", "shiiiit", "sh1t", "&#102;uck", "F U C K"])
def test_disguise_does_not_help(text):
    assert Filter({"languages": ["english"]}).is_profane(text)
    assert make_reward({"type": "offensiveness_lexicon"})([f"well, {text} that"]) == [0.5]


def test_groups_of_people_are_not_offensive_but_slurs_are():
    fine, slur = make_reward({"type": "offensiveness_lexicon"})(["Gay, black and Muslim women", "He is a faggot."])
    assert (fine, slur) == (1.0, 0.5)


def test_words_can_be_let_pass():
    texts = ["A nude in a painting.", "A nude shit."]
    assert make_reward({"type": "offensiveness_lexicon"})(texts) == [0.5, pytest.approx(1 / 3)]
    assert make_reward({"type": "offensiveness_lexicon", "ignore": ["Nude"]})(texts) == [1.0, 0.5]


@pytest.mark.parametrize("type_", TYPES)
def test_hostile_texts_have_a_score_within_the_range(type_):
    assert all(0.0 <= score <= 1.0 for score in make_reward({"type": type_})(HOSTILE))


@pytest.mark.parametrize(("type_", "word"), [("sentiment_lexicon", "great. "), ("offensiveness_lexicon", "shit ")])
def test_what_is_past_the_bound_does_not_count(type_, word):
    reward = make_reward({"type": type_})
    padding = "table. " * (MAX_CHARACTERS // 7 + 1)
    assert reward([padding + word * 100]) == reward([padding])
    assert reward([word + padding]) != reward([padding])


@pytest.mark.parametrize("type_", TYPES)
def test_a_batch_scores_as_its_rows_one_at_a_time_and_in_any_order(type_):
    reward = make_reward({"type": type_})
    texts = [*SENTENCES, "what the fuck", "", "what the fuck", " ".join(SENTENCES)]
    batch = reward(texts)
    assert batch == [reward.score(text, None) for text in texts]
    assert reward(texts[::-1]) == batch[::-1]
    assert len(set(batch)) > 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "sentiment_lexicon", "target_label": "joy"}, "target_label = 'joy'"),
        ({"type": "sentiment_lexicon", "labels": {}}, "labels: no such option"),
        ({"type": "offensiveness_lexicon", "ignore": "nude"}, "ignore = 'nude'"),
        ({"type": "offensiveness_lexicon", "ignore": [1]}, "ignore"),
    ],
)
def test_a_bad_option_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_reward(spec)
