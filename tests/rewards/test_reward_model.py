import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.rewards.tiny_models import save_decoder
from trl_ext.errors import ConfigError, TrlExtError
from trl_ext.rewards import make_reward

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
HOSTILE = [
    "",
    " \t\n",
    "\x00\x01",
    "\ud800 lone \udfff",
    "a" * 1_000_000,
    "word " * 200_000,
    "مرحبا",
    "🙂" * 50,
    "<eos><pad>",
]
PROMPTS = ["Hi", "1 + 1 =", "", "Why is the sky blue?", "Hi", "Hi"]
COMPLETIONS = ["Hello.", "2", "x", "It scatters light.", "", "Hello."]


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("plain"), scale=20.0)


@pytest.fixture(scope="session")
def chat(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("chat"), template=TEMPLATE, scale=20.0)


@pytest.fixture(scope="session")
def unpadded(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("unpadded"), pad=False, scale=20.0)


def output(folder, text, length=64):
    """The model's own output for one text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        return float(AutoModelForSequenceClassification.from_pretrained(folder).eval()(ids["input_ids"]).logits)


def test_without_a_chat_template_prompt_and_completion_follow_each_other(plain):
    scores = make_reward({"type": "reward_model", "model": plain, "batch_size": 4})(COMPLETIONS, prompts=PROMPTS)
    expected = [output(plain, prompt + completion) for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert scores == pytest.approx(expected, abs=1e-4)
    assert max(scores) - min(scores) > 0.1


def test_the_chat_template_is_applied(chat):
    scores = make_reward({"type": "reward_model", "model": chat})(COMPLETIONS, prompts=PROMPTS)
    expected = [
        output(chat, f"<user>{prompt}<eos><assistant>{completion}<eos>")
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    assert scores == pytest.approx(expected, abs=1e-4)


def test_a_chat_prompt_is_read_by_its_last_message(chat):
    reward = make_reward({"type": "reward_model", "model": chat})
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    (score,) = reward([[{"role": "assistant", "content": "Hello."}]], prompts=[messages])
    assert score == pytest.approx(reward.score("Hello.", None, prompt="Hi"))


@pytest.mark.parametrize("name", ["plain", "chat", "unpadded"])
def test_a_batch_scores_as_one_at_a_time_and_in_any_order(name, request):
    reward = make_reward({"type": "reward_model", "model": request.getfixturevalue(name), "batch_size": 3})
    batch = reward(COMPLETIONS, prompts=PROMPTS)
    single = [reward.score(c, None, prompt=p) for c, p in zip(COMPLETIONS, PROMPTS, strict=True)]
    assert batch == pytest.approx(single, abs=1e-5)
    assert batch[0] == batch[5]
    assert reward(COMPLETIONS[::-1], prompts=PROMPTS[::-1])[::-1] == pytest.approx(batch, abs=1e-5)


def test_what_is_too_long_loses_its_end(plain):
    reward = make_reward({"type": "reward_model", "model": plain, "max_length": 10})
    assert reward.score("abcdefghijkl", None, prompt="12") == pytest.approx(output(plain, "12abcdefgh"), abs=1e-4)


def test_a_chat_is_cut_to_what_the_model_takes(chat):
    score = make_reward({"type": "reward_model", "model": chat}).score("abc" * 40, None, prompt="Hi")
    assert score == pytest.approx(output(chat, "<user>Hi<eos><assistant>" + "abc" * 40, length=64), abs=1e-4)


def test_squash_is_the_sigmoid(plain):
    raw = make_reward({"type": "reward_model", "model": plain}).score("2", None, prompt="1 + 1 =")
    squashed = make_reward({"type": "reward_model", "model": plain, "squash": True}).score("2", None, prompt="1 + 1 =")
    assert squashed == pytest.approx(1 / (1 + math.exp(-raw)))


def test_outputs_are_cut_to_100(tmp_path):
    folder = save_decoder(tmp_path, scale=1e6)
    scores = make_reward({"type": "reward_model", "model": folder})(COMPLETIONS, prompts=PROMPTS)
    assert {abs(score) for score in scores} == {100.0}
    squashed = make_reward({"type": "reward_model", "model": folder, "squash": True})(COMPLETIONS, prompts=PROMPTS)
    assert all(0 <= score <= 1 for score in squashed)


def test_an_output_that_is_not_a_number_is_none(tmp_path):
    folder = save_decoder(tmp_path, scale=math.nan)
    assert make_reward({"type": "reward_model", "model": folder})(["a"], prompts=["b"]) == [None]


@pytest.mark.parametrize("name", ["plain", "chat", "unpadded"])
def test_hostile_texts_have_a_score_within_the_range(name, request):
    reward = make_reward({"type": "reward_model", "model": request.getfixturevalue(name)})
    scores = reward(HOSTILE, prompts=HOSTILE[::-1])
    assert all(-100.0 <= score <= 100.0 for score in scores)


def test_nothing_at_all_is_none_and_disturbs_no_other_row(unpadded, plain):
    for folder in (unpadded, plain):
        reward = make_reward({"type": "reward_model", "model": folder})
        assert reward(["", "a"], prompts=["", ""]) == [None, pytest.approx(reward.score("a", None), abs=1e-5)]


def test_a_classifier_of_several_labels_is_refused(tmp_path):
    with pytest.raises(TrlExtError, match="2 labels: must be 1"):
        make_reward({"type": "reward_model", "model": save_decoder(tmp_path, labels=2)}).score("a", None)


@pytest.mark.parametrize(
    "options", [{}, {"model": "x", "batch_size": 0}, {"model": "x", "max_length": 3}, {"model": 3}]
)
def test_a_bad_option_is_refused(options):
    with pytest.raises(ConfigError, match=r"batch_size = 0|max_length = 3|model"):
        make_reward({"type": "reward_model", **options})
