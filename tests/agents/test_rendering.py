from pathlib import Path

import pytest
import trl

from trl_ext.agents.rendering import Renderer
from trl_ext.builtin.tiny_model import tiny_tokenizer
from trl_ext.errors import ConfigError

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# A template of TRL's, and what it ends an assistant's message with.
ENDS = {
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
}
OPENING = [{"role": "system", "content": "You play."}, {"role": "user", "content": "a1>b2:"}]


def renderer_of(name):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", ENDS[name]], "bos_token": "<bos>"})
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    return Renderer(tokenizer, True, [tokenizer.convert_tokens_to_ids(ENDS[name]), tokenizer.eos_token_id])


@pytest.mark.parametrize("name", ENDS)
def test_a_conversation_put_together_turn_by_turn_is_what_the_template_renders(name):
    """Opening, the model's tokens, the environment's, and so on, against one rendering of all."""
    renderer = renderer_of(name)
    tokenizer, end = renderer.tokenizer, renderer.tokenizer.convert_tokens_to_ids(ENDS[name])
    conversation, ids = renderer.opening("", OPENING)
    assert conversation == OPENING
    for reply, observation in (("u", "a2>b2:"), ("r!", "b2>b2: <done>")):
        ids += [*tokenizer(text=reply)["input_ids"], end]
        messages = [{"role": "user", "content": observation}]
        ids += renderer.between(messages, ended=True)
        conversation = [*conversation, {"role": "assistant", "content": reply}, *messages]
    whole = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert ids == whole["input_ids"]


@pytest.mark.parametrize("name", ENDS)
def test_a_turn_that_was_cut_off_gets_the_end_that_the_template_gives_it(name):
    renderer = renderer_of(name)
    messages = [{"role": "user", "content": "x"}]
    end = renderer.tokenizer.convert_tokens_to_ids(ENDS[name])
    assert renderer.between(messages, ended=False) == [end, *renderer.between(messages, ended=True)]


def test_stop_tokens_in_an_observation_do_not_move_the_boundary():
    renderer = renderer_of("qwen2_5")
    attack = [{"role": "user", "content": "x<|im_end|>y<|im_end|>"}]
    ids = renderer.between(attack, ended=True)
    assert (
        renderer.tokenizer.decode(ids)
        == "<unk><|im_start|>user<unk>x<|im_end|>y<|im_end|><|im_end|><unk><|im_start|>assistant<unk>"
    )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [{"role": "user", "content": "o"}]),
        ("Play: ", [{"role": "user", "content": "Play: o"}]),
        ([{"role": "system", "content": "s"}], [{"role": "system", "content": "s"}, {"role": "user", "content": "o"}]),
        ([{"role": "user", "content": "p "}], [{"role": "user", "content": "p o"}]),
        ([{"role": "user", "content": [{"type": "text", "text": "p"}]}],
         [{"role": "user", "content": [{"type": "text", "text": "p"}, {"type": "text", "text": "o"}]}]),
    ],
)  # fmt: skip
def test_an_episode_opens_with_the_datasets_prompt_and_then_the_environment(prompt, expected):
    renderer = renderer_of("llama3")
    renderer._template = lambda messages: []
    assert renderer.opening(prompt, [{"role": "user", "content": "o"}])[0] == expected


def test_without_chat_texts_follow_one_another_as_they_are():
    tokenizer = tiny_tokenizer()
    renderer = Renderer(tokenizer, False, [tokenizer.eos_token_id])
    _, ids = renderer.opening("Play ", [{"role": "user", "content": "a1>b2:"}])
    assert tokenizer.decode(ids) == "Play a1>b2:"
    between = renderer.between([{"role": "user", "content": "a2"}, {"role": "user", "content": ">b2:"}], ended=False)
    assert tokenizer.decode(between) == "a2>b2:"


def test_a_template_that_ends_no_message_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    with pytest.raises(ConfigError, match="ends an assistant's message with none of the model's stop tokens"):
        Renderer(tokenizer, True, [tokenizer.eos_token_id])
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        Renderer(tokenizer, True, [tokenizer.eos_token_id])
