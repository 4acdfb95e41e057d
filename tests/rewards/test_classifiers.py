import math

import pytest
from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification, pipeline

from tests.rewards.tiny_models import SIZES, save, save_checkpoint, save_decoder, word_tokenizer
from trl_ext.errors import ConfigError, TrlExtError
from trl_ext.rewards import classifier_presets, list_rewards, make_reward
from trl_ext.rewards.registry import get_reward_type

PRESETS = ["sentiment", "emotion", "sarcasm", "toxicity", "hate_speech", "offensiveness", "bias", "formality"]
TEXTS = ["good cat", "", "the bad dog ran and sat . " * 20, "  ", "unknown", "good cat", "awful", "fine"]
HOSTILE = ["", " \t\n", "\x00", "\ud800", "a" * 1_000_000, "good " * 200_000, "مرحبا بالعالم", "🙂" * 50, "\u202e abc"]


@pytest.fixture(scope="session")
def three(tmp_path_factory):
    """Negative, Neutral, Positive by the words bad, fine and good."""
    examples = [((f"{word} {noun}",), label) for noun in ("cat", "dog", "the text") for word, label in KNOWN.items()]
    return save_checkpoint(tmp_path_factory.mktemp("three"), ["Negative", "Neutral", "Positive"], examples=examples)


KNOWN = {"bad": "Negative", "fine": "Neutral", "good": "Positive"}


@pytest.fixture(scope="session")
def toxic(tmp_path_factory):
    return save_checkpoint(
        tmp_path_factory.mktemp("toxic"), ["toxic", "insult", "threat"], "multi_label_classification"
    )


@pytest.fixture
def two(tmp_path_factory):
    def make(*labels, **options):
        return save_checkpoint(tmp_path_factory.mktemp("labels"), list(labels), **options)

    return make


def library(folder, text, activation):
    """The probability of each label, by the pipeline of transformers."""
    run = pipeline("text-classification", folder, top_k=None, function_to_apply=activation, device="cpu")
    return {row["label"]: row["score"] for row in run([text], truncation=True, max_length=64)[0]}


def test_the_wanted_label_scores_high_another_low_and_neutral_is_no_target(three):
    reward = make_reward({"type": "classifier", "model": three, "target_label": "POSITIVE"})
    good, neutral, bad = reward(["good cat", "fine cat", "bad cat"])
    assert good > 0.9
    assert neutral < 0.1
    assert bad < 0.1


def test_the_score_is_the_expected_value_of_the_label_as_by_the_librarys_pipeline(three):
    values = {"negative": 0.0, "NEUTRAL": 0.5, "Positive": 1.0}
    reward = make_reward({"type": "classifier", "model": three, "labels": values})
    for text in ("good cat", "the dog sat", ""):
        p = library(three, text, "softmax")
        assert reward.score(text, None) == pytest.approx(0.5 * p["Neutral"] + p["Positive"], abs=1e-6)


def test_a_multi_label_model_uses_sigmoid_and_the_sum_is_clipped(toxic):
    p = library(toxic, "good cat", "sigmoid")
    labels = {"toxic": 1, "insult": 1, "threat": 1}
    assert sum(p.values()) > 1.0
    assert make_reward({"type": "classifier", "model": toxic, "labels": labels}).score("good cat", None) == 1.0
    reward = make_reward({"type": "classifier", "model": toxic, "labels": {"toxic": 0.5, "insult": -0.25, "threat": 0}})
    expected = 0.5 * p["toxic"] - 0.25 * p["insult"]
    assert reward.score("good cat", None) == pytest.approx(expected, abs=1e-6)


def test_activation_overrides_what_the_model_says(toxic, three):
    forced = make_reward({"type": "classifier", "model": toxic, "target_label": "toxic", "activation": "softmax"})
    assert forced.score("bad", None) == pytest.approx(library(toxic, "bad", "softmax")["toxic"], abs=1e-6)
    forced = make_reward({"type": "classifier", "model": three, "target_label": "neutral", "activation": "sigmoid"})
    assert forced.score("bad", None) == pytest.approx(library(three, "bad", "sigmoid")["Neutral"], abs=1e-6)


def test_a_model_with_one_label_uses_sigmoid(two):
    folder = two("LABEL_0")
    reward = make_reward({"type": "classifier", "model": folder, "target_label": "label_0"})
    scores = reward(["good", "bad"])
    assert scores == pytest.approx([library(folder, text, "sigmoid")["LABEL_0"] for text in ("good", "bad")], abs=1e-6)
    assert scores[0] != scores[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": {"negative": 0, "positive": 1}}, r"no value for \['Neutral'\].*'Negative', 'Neutral', 'Positive'"),
        ({"labels": {"negative": 0, "neutral": 0, "positive": 1, "joy": 1}}, "labels.joy: no such label; .*'negative'"),
        ({"target_label": "posit"}, "no such label; .*'positive'"),
        ({"labels": {"negative": 1, "neutral": 1, "positive": 1}}, "all texts would score 1.0"),
        ({"target_label": "positive", "max_length": 65}, "max_length = 65: must be at most 64"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_at_the_first_call(three, options, message):
    reward = make_reward({"type": "classifier", "model": three, **options})
    with pytest.raises(ConfigError, match=message):
        reward(["good"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "model: must be given"),
        ({"model": "m"}, "labels = None: must be given, or target_label"),
        ({"model": "m", "labels": {}}, "must name each label once"),
        ({"model": "m", "labels": {"a": 1, "A": 0}}, "must name each label once"),
        ({"model": "m", "labels": {"a": math.nan}}, "labels.a = nan: must be a finite number"),
        ({"model": "m", "labels": {"a": 1}, "target_label": "a"}, "must not be given beside labels"),
        ({"model": "m", "target_label": " "}, "must be the name of a label"),
        ({"model": "m", "target_label": "a", "batch_size": 0}, "batch_size = 0: must be at least 1"),
        ({"model": "m", "target_label": "a", "max_length": 7}, "max_length = 7: must be at least 8"),
        ({"model": "m", "target_label": "a", "activation": "relu"}, "activation = 'relu'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_reward({"type": "classifier", **options})


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(TrlExtError, match="no/such-model"):
        make_reward({"type": "sentiment", "model": "no/such-model"})(["good"])


@pytest.mark.parametrize("batch_size", [3, 32])
@pytest.mark.parametrize("special", [True, False])
def test_a_batch_scores_as_one_at_a_time_in_any_order(two, special, batch_size):
    folder = two("LABEL_0", "LABEL_1", special=special)
    reward = make_reward({"type": "classifier", "model": folder, "target_label": "LABEL_1", "batch_size": batch_size})
    alone = [reward.score(text, None) for text in TEXTS]
    assert reward(TEXTS) == pytest.approx(alone, abs=1e-5)
    assert reward(TEXTS[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    assert max(alone) - min(alone) > 0.01
    assert reward([]) == []


def test_a_decoder_without_padding_is_batched_all_the_same(tmp_path):
    save_decoder(tmp_path, labels=2, pad=False, scale=20.0)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id is None
    reward = make_reward({"type": "classifier", "model": str(tmp_path), "target_label": "LABEL_1"})
    alone = [reward.score(text, None) for text in TEXTS]
    assert reward(TEXTS) == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.01


def test_roberta_is_cut_to_the_positions_that_are_not_for_padding(tmp_path):
    encode = word_tokenizer()
    config = RobertaConfig(
        vocab_size=len(encode), num_hidden_layers=1, max_position_embeddings=18, pad_token_id=0, **SIZES
    )
    folder = save(tmp_path, RobertaForSequenceClassification(config), encode)
    reward = make_reward({"type": "classifier", "model": folder, "target_label": "LABEL_1"})
    assert 0.0 <= reward.score("good " * 100, None) <= 1.0


def test_only_the_first_tokens_count(three):
    reward = make_reward({"type": "classifier", "model": three, "target_label": "positive", "max_length": 8})
    assert reward.score("good " * 6, None) == reward.score("good " * 6 + "bad " * 50, None)
    assert reward.score("good " * 5, None) != reward.score("good " * 5 + "bad " * 50, None)


def test_hostile_texts_have_a_score_within_the_range(three, toxic):
    for spec in ({"type": "sentiment", "model": three}, {"type": "toxicity", "model": toxic}):
        scores = make_reward(spec)(HOSTILE)
        assert all(0.0 <= score <= 1.0 for score in scores), scores


@pytest.mark.parametrize(
    ("type_", "labels", "wanted"),
    [
        ("sentiment", ["NEGATIVE", "POSITIVE"], "POSITIVE"),
        ("emotion", ["anger", "enjoyment", "joy"], "joy"),
        ("sarcasm", ["not_sarcastic", "Sarcastic"], "Sarcastic"),
        ("hate_speech", ["nothate", "hate"], "nothate"),
        ("offensiveness", ["non-offensive", "offensive"], "non-offensive"),
        ("bias", ["Biased", "Non-biased"], "Non-biased"),
        ("formality", ["informal", "formal"], "formal"),
    ],
)
def test_a_preset_knows_the_good_label_by_its_name(two, type_, labels, wanted):
    folder = two(*labels)
    p = library(folder, "good cat", "softmax")
    assert make_reward({"type": type_, "model": folder}).score("good cat", None) == pytest.approx(p[wanted], abs=1e-6)
    other = next(label for label in labels if label != wanted)
    spec = {"type": type_, "model": folder, "labels": {label: float(label == other) for label in labels}}
    assert make_reward(spec).score("good cat", None) == pytest.approx(p[other], abs=1e-6)
    spec = {"type": type_, "model": folder, "target_label": other.upper()}
    assert make_reward(spec).score("good cat", None) == pytest.approx(p[other], abs=1e-6)


@pytest.mark.parametrize("type_", PRESETS)
def test_a_preset_refuses_generic_labels_of_a_model_it_does_not_know_until_they_are_mapped(two, type_):
    folder = two("LABEL_0", "LABEL_1")
    with pytest.raises(TrlExtError, match=r"(?i)label.*'LABEL_0', 'LABEL_1'"):
        make_reward({"type": type_, "model": folder})(["good"])
    score = make_reward({"type": type_, "model": folder, "labels": {"label_0": 0, "label_1": 1}}).score("good", None)
    p = library(folder, "good", "softmax")["LABEL_1"]
    assert score == pytest.approx(1 - p if type_ == "toxicity" else p, abs=1e-6)


def test_generic_labels_have_their_meaning_for_the_default_model_alone(two, monkeypatch):
    folder = two("LABEL_0", "LABEL_1")
    p = library(folder, "good", "softmax")
    for name, wanted in (("Sarcasm", "LABEL_1"), ("Offensiveness", "LABEL_0"), ("Formality", "LABEL_1")):
        monkeypatch.setattr(getattr(classifier_presets, name), "default_model", folder)
        assert make_reward({"type": name.lower()}).score("good", None) == pytest.approx(p[wanted], abs=1e-6)


def test_sentiment_takes_every_label_that_contains_the_target(two):
    folder = two("Very Negative", "Positive", "Very Positive")
    p = library(folder, "good cat", "softmax")
    score = make_reward({"type": "sentiment", "model": folder}).score("good cat", None)
    assert score == pytest.approx(p["Positive"] + p["Very Positive"], abs=1e-6)


def test_toxicity_is_one_minus_the_toxic_label_unless_it_is_not_inverted(toxic):
    p = library(toxic, "bad dog", "sigmoid")
    for options, expected in [
        ({}, 1 - p["toxic"]),
        ({"invert": False}, p["toxic"]),
        ({"target_label": "threat"}, 1 - p["threat"]),
        ({"labels": {"toxic": 0, "insult": 1, "threat": 0}}, 1 - p["insult"]),
    ]:
        score = make_reward({"type": "toxicity", "model": toxic, **options}).score("bad dog", None)
        assert score == pytest.approx(expected, abs=1e-6)


def test_toxicity_takes_detoxifys_names_for_its_models():
    made = get_reward_type("toxicity").make
    assert made(model="original").model == made().model == "unitary/toxic-bert"
    assert made(model="unbiased").model == "unitary/unbiased-toxic-roberta"
    assert made(model="/some/folder").model == "/some/folder"


def test_every_preset_is_registered_with_a_model():
    for name in PRESETS:
        assert name in list_rewards()
        assert get_reward_type(name).needs_model
