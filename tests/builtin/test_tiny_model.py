import string

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext.builtin.arithmetic import arithmetic_demonstrations, arithmetic_prompts
from trl_ext.builtin.tiny_model import fit_tiny_model, tiny_model, tiny_tokenizer


def test_every_printable_character_is_a_token_and_comes_back():
    tokenizer = tiny_tokenizer()
    text = string.printable.strip() + " a"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer("é")["input_ids"] == [tokenizer.unk_token_id]


def test_the_same_seed_gives_the_same_model():
    first, again, other = tiny_model(seed=1), tiny_model(seed=1), tiny_model(seed=2)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_a_few_steps_of_fitting_raise_the_likelihood_of_right_answers(tmp_path):
    fit_tiny_model(tmp_path, arithmetic_demonstrations(8, wrong=0.0), steps=30)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    row = arithmetic_prompts()[0][0]
    ids = torch.tensor([tokenizer(row["prompt"] + row["answer"])["input_ids"] + [tokenizer.eos_token_id]])

    def loss(model):
        return model(input_ids=ids, labels=ids).loss.item()

    assert loss(AutoModelForCausalLM.from_pretrained(tmp_path)) < loss(tiny_model()) - 0.5
