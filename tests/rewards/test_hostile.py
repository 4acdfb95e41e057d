"""Every registered type on any text: a finite float or None, within its range."""

import json
import math
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rewards.tiny_models import save_checkpoint
from trl_ext.rewards import list_rewards, make_reward
from trl_ext.rewards.registry import get_reward_type

# What a type cannot do without.
OPTIONS = {
    "code": {"allow_unsafe": True},
    "format": {"pattern": r"(a+)+b"},
    "json_schema": {"schema": {"type": "object"}},
    "length": {"max": 10},
    "readability": {"min": 30, "soft": 20},
}
ENTRY = json.dumps({"question": "1 + 1", "answer": "2", "metadata": {"source_dataset": "chain_sum"}})
HOSTILE = [
    "",
    " \t\n\u00a0",
    "\x00\x01\x7f",
    "\ud800 lone \udfff",
    "a" * 1_000_000,
    "word " * 200_000,
    "مرحبا بالعالم ‏",
    "你好世界" * 50,
    "🙂👩‍👩‍👧‍👦" * 100,
    "[" * 50_000,
    "\\boxed{" * 5_000,
    "9" * 20_000,
    "1e999999",
    "nan inf -inf",
    "<think>" * 1_000,
]
JUDGES = {"judge", "legal_validity", "medical_accuracy", "ruler", "scientific_integrity"}  # need a server: elsewhere
APART = {"comet", "bleurt"}  # need another environment: test_external.py
TYPES = [name for name in list_rewards() if name not in JUDGES | APART]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("the cat sat on the mat\n")
    return str(path)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """A checkpoint whose labels suit the classifiers and the entailment types alike."""
    labels = ["contradiction", "neutral", "entailment"]
    return save_checkpoint(tmp_path_factory.mktemp("classifier"), labels)


@pytest.fixture(scope="session")
def rater(tmp_path_factory):
    """A checkpoint with one output."""
    return save_checkpoint(tmp_path_factory.mktemp("rater"), ["score"])


@pytest.fixture
def build(corpus, classifier, rater, tiny):
    entailment = {"nli", "factual_accuracy", "truthfulness", "contradiction", "topic_consistency"}

    def make(name):
        options = OPTIONS.get(name, {})
        if name == "novelty":
            options = {"corpus": corpus}
        elif name in {"cosine_sts", "exploration", "qa_relevance", "bertscore"}:
            options = {"model_type" if name == "bertscore" else "model": classifier}
        elif name in {"perplexity", "fluency", "gptscore"}:
            options = {"model": tiny}
        elif name == "reward_model":
            options = {"model": rater}
        elif name in entailment:
            options = {"model": classifier}
        elif get_reward_type(name).needs_model:
            options = {"model": classifier, "target_label": "neutral"}
        return make_reward({"type": name, **options})

    return make


def check(name, scores, count):
    low, high = sorted(get_reward_type(name).range)
    assert len(scores) == count
    assert all(score is None or (math.isfinite(score) and low <= score <= high) for score in scores), scores


@pytest.mark.parametrize("name", TYPES)
def test_hostile_texts_are_scored_in_bounded_time(name, build):
    reward = build(name)
    start = time.process_time()
    for target in ("42", "the cat", HOSTILE[4], HOSTILE[5]):
        scores = reward(
            HOSTILE, prompts=["p"] * len(HOSTILE), target=[target] * len(HOSTILE), entry=[ENTRY] * len(HOSTILE)
        )
        check(name, scores, len(HOSTILE))
    assert time.process_time() - start < 120  # a bound on catastrophe (a regex bomb, a quadratic text), not a timing


@pytest.mark.parametrize("name", [name for name in TYPES if name != "math"])  # a process per verdict: above
def test_any_text_is_scored(name, build):
    reward = build(name)
    texts = st.lists(st.text(st.characters(codec=None), max_size=60), min_size=1, max_size=4)

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(texts, st.text(max_size=30))
    def run(completions, target):
        columns = {"target": [target] * len(completions), "entry": [ENTRY] * len(completions)}
        check(name, reward(completions, prompts=["p"] * len(completions), **columns), len(completions))

    run()
