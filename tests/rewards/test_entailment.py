import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tests.rewards.test_classifiers import HOSTILE
from tests.rewards.tiny_models import save_checkpoint
from trl_ext.errors import ConfigError, TrlExtError
from trl_ext.rewards import make_reward

REFERENCED = ["nli", "factual_accuracy", "truthfulness", "contradiction"]
TYPES = [*REFERENCED, "topic_consistency"]
PREMISES = ["the cat sat", "the dog ran"]
ENTAILED, OPEN, CONTRADICTED = "a cat sat", "music is fine", "no cat sat"
HYPOTHESES = [ENTAILED, OPEN, CONTRADICTED, "unknown", "the dog ran . " * 30, "a cat sat"]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Labels in the order of cross-encoder/nli-deberta-v3-base, fitted to a few pairs."""
    examples = [
        (("the cat sat", ENTAILED), "entailment"),
        (("the cat sat", OPEN), "neutral"),
        (("the cat sat", CONTRADICTED), "contradiction"),
        (("no dog ran", ENTAILED), "contradiction"),
        (("sports is good", "This text is about sports ."), "entailment"),
        (("sports is good", "This text is about music ."), "contradiction"),
    ]
    labels = ["contradiction", "entailment", "neutral"]
    return save_checkpoint(tmp_path_factory.mktemp("nli"), labels, examples=examples)


def library(folder, premise, hypothesis):
    """Probabilities (contradiction, entailment, neutral), by transformers."""
    encoded = AutoTokenizer.from_pretrained(folder)(premise, hypothesis, return_tensors="pt")
    with torch.inference_mode():
        return AutoModelForSequenceClassification.from_pretrained(folder)(**encoded).logits.softmax(-1)[0].tolist()


@pytest.mark.parametrize("type_", REFERENCED)
def test_the_entailed_scores_above_the_contradicted_blank_is_0_and_no_reference_is_none(model, type_):
    reward = make_reward({"type": type_, "model": model})
    texts = [ENTAILED, CONTRADICTED, "", " \n", ENTAILED, ENTAILED, ""]
    gold, wrong, *rest = reward(texts, target=["the cat sat"] * 4 + [None, [], None])
    assert gold > 0.8
    assert wrong < 0.2
    assert rest == [0.0, 0.0, None, None, None]


def test_each_type_is_its_formula_of_the_librarys_probabilities(model):
    contradiction, entailment, neutral = library(model, "the cat sat", "the dog is fine")
    for spec, expected in [
        ({"type": "nli"}, entailment),
        ({"type": "nli", "label": "neutral"}, neutral),
        ({"type": "nli", "label": "contradiction", "invert": True}, 1 - contradiction),
        ({"type": "factual_accuracy"}, entailment),
        ({"type": "truthfulness"}, (1 + entailment - contradiction) / 2),
        ({"type": "contradiction"}, 1 - contradiction),
    ]:
        score = make_reward({**spec, "model": model}).score("the dog is fine", "the cat sat")
        assert score == pytest.approx(expected, abs=1e-6), spec


def test_the_premise_can_be_the_prompt_and_without_one_there_is_no_score(model):
    reward = make_reward({"type": "nli", "model": model, "premise": "prompt"})
    expected = library(model, "the cat sat", ENTAILED)[1]
    assert reward([ENTAILED, ENTAILED], prompts=["the cat sat", ""]) == [pytest.approx(expected, abs=1e-6), None]
    assert reward([ENTAILED]) == [None]


def test_the_premise_comes_before_the_hypothesis(model):
    swapped = library(model, CONTRADICTED, "the cat sat")[1]
    score = make_reward({"type": "nli", "model": model}).score(CONTRADICTED, "the cat sat")
    assert score == pytest.approx(library(model, "the cat sat", CONTRADICTED)[1], abs=1e-6)
    assert abs(score - swapped) > 1e-4


def test_the_best_of_several_references_counts(model):
    reward = make_reward({"type": "factual_accuracy", "model": model})
    references = ["no dog ran", "the cat sat", "no dog sat"]
    alone = [reward.score(ENTAILED, reference) for reference in references]
    assert reward([ENTAILED], target=[[*references, None]]) == [pytest.approx(max(alone), abs=1e-6)]
    assert alone[1] == max(alone) > 0.8 > 0.2 > alone[0]


def test_topic_consistency_equals_the_librarys_zero_shot_pipeline(model):
    run = pipeline("zero-shot-classification", model, device="cpu")
    for text in ("sports is good", "the dog ran"):
        found = run(text, ["sports", "music"], hypothesis_template="This text is about {}.", multi_label=True)
        for topic, expected in zip(found["labels"], found["scores"], strict=True):
            given = make_reward({"type": "topic_consistency", "model": model, "topic": topic})
            assert given([text]) == [pytest.approx(expected, abs=1e-5)]
            from_target = make_reward({"type": "topic_consistency", "model": model})
            assert from_target.score(text, topic) == pytest.approx(expected, abs=1e-5)


def test_topic_consistency_tells_the_topic_from_another_and_needs_one(model):
    reward = make_reward({"type": "topic_consistency", "model": model})
    right, wrong, blank, none = reward(
        ["sports is good", "sports is good", "", "sports is good"], target=["sports", "music", "sports", None]
    )
    assert right > 0.8 > 0.2 > wrong
    assert (blank, none) == (0.0, None)
    with pytest.raises(TrlExtError, match='needs "topic"'):
        reward(["sports is good"])


@pytest.mark.parametrize("type_", REFERENCED)
def test_a_missing_reference_column_is_an_error(model, type_):
    with pytest.raises(TrlExtError, match="references"):
        make_reward({"type": type_, "model": model})(["a cat sat"])


@pytest.mark.parametrize("type_", TYPES)
def test_a_batch_scores_as_one_at_a_time_in_any_order(model, type_):
    reward = make_reward({"type": type_, "model": model, "batch_size": 2})
    targets = [PREMISES[i % 2] for i in range(len(HYPOTHESES))]
    alone = [reward.score(text, target) for text, target in zip(HYPOTHESES, targets, strict=True)]
    assert reward(HYPOTHESES, target=targets) == pytest.approx(alone, abs=1e-5)
    assert reward(HYPOTHESES[::-1], target=targets[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    assert max(alone) - min(alone) > 0.01
    assert reward([], target=[]) == []


@pytest.mark.parametrize("type_", TYPES)
def test_hostile_texts_have_a_score_within_the_range(model, type_):
    reward = make_reward({"type": type_, "model": model})
    for target in ("the cat", "\ud800", "good " * 200_000):
        scores = reward(HOSTILE, target=[target] * len(HOSTILE))
        assert all(0.0 <= score <= 1.0 for score in scores), scores


def test_labels_are_found_by_name_whatever_their_order_and_case(tmp_path):
    folder = save_checkpoint(tmp_path, ["ENTAIL", "Contradict"])
    reward = make_reward({"type": "factual_accuracy", "model": folder})
    assert reward.score("the cat", "a dog") == pytest.approx(library(folder, "a dog", "the cat")[0], abs=1e-6)
    with pytest.raises(
        TrlExtError, match=r"must have one label for neutral, its labels are \['ENTAIL', 'Contradict'\]"
    ):
        make_reward({"type": "nli", "model": folder, "label": "neutral"}).score("the cat", "a dog")


def test_not_entailment_is_not_entailment(tmp_path):
    folder = save_checkpoint(tmp_path, ["not_entailment", "entailment"])
    reward = make_reward({"type": "factual_accuracy", "model": folder})
    assert reward.score("the cat", "a dog") == pytest.approx(library(folder, "a dog", "the cat")[1], abs=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "nli", "premise": "answer"}, "premise = 'answer'"),
        ({"type": "nli", "label": "maybe"}, "label = 'maybe'"),
        ({"type": "truthfulness", "label": "neutral"}, "label: no such option"),
        ({"type": "contradiction", "batch_size": 0}, "batch_size = 0: must be at least 1"),
        ({"type": "factual_accuracy", "max_length": 3}, "max_length = 3: must be at least 8"),
        ({"type": "topic_consistency", "topic": " "}, "topic = ' ': must not be blank"),
    ],
)
def test_bad_options_are_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_reward(spec)
