import pytest
import torch

from trl_ext.errors import ModelNotFoundError
from trl_ext.rewards.models import load_model, run_by_length


def test_results_come_back_in_order_from_batches_of_like_length():
    batches = []

    def run(batch):
        batches.append(list(batch))
        assert torch.is_inference_mode_enabled()
        return [len(text) for text in batch]

    texts = ["aaa", "a", "aaaa", "", "aa"]
    assert run_by_length(texts, len, run, batch_size=2) == [3, 1, 4, 0, 2]
    assert batches == [["aaaa", "aaa"], ["aa", "a"], [""]]
    assert run_by_length([], len, run) == []


def test_a_wrong_number_of_results_is_noticed():
    with pytest.raises(ValueError, match="zip"):
        run_by_length(["a", "b"], len, lambda batch: [1.0])


def test_a_model_is_loaded_once_and_ready_to_score(tiny):
    model, tokenizer = load_model("AutoModelForCausalLM", tiny)
    assert load_model("AutoModelForCausalLM", tiny)[0] is model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer("1+1")["input_ids"]


def test_an_unknown_model_is_one_line():
    with pytest.raises(ModelNotFoundError, match="model 'no/such-model' cannot be loaded") as error:
        load_model("AutoModelForCausalLM", "no/such-model")
    assert "\n" not in str(error.value)
