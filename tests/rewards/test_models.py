import threading

import pytest
import torch
from transformers import AutoModel, BertConfig, BloomConfig, RobertaConfig

from trl_ext.errors import ModelNotFoundError
from trl_ext.rewards.models import (
    check_batching,
    in_onednn,
    is_empty,
    load_model,
    pad_right,
    run_by_length,
    token_limit,
    tokenizable,
)


@pytest.fixture
def threads():
    """Sets the number of torch's threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_results_come_back_in_order_from_batches_of_like_length(threads):
    threads(1)
    batches = []

    def run(batch):
        batches.append(list(batch))
        assert torch.is_inference_mode_enabled()
        return [len(text) for text in batch]

    texts = ["aaa", "a", "aaaa", "", "aa"]
    assert run_by_length(texts, len, run, batch_size=2) == [3, 1, 4, 0, 2]
    assert batches == [["aaaa", "aaa"], ["aa", "a"], [""]]
    assert run_by_length([], len, run) == []


def test_on_the_cpu_each_thread_runs_a_part_of_a_batch(threads):
    threads(4)
    together = threading.Barrier(2, timeout=60)
    batches = []

    def run(batch):
        batches.append(list(batch))
        together.wait()  # breaks unless two run at the same time
        assert torch.get_num_threads() == 2
        assert torch.is_inference_mode_enabled()
        return [2 * number for number in batch]

    assert run_by_length([3, 1, 4, 2], int, run, batch_size=2) == [6, 2, 8, 4]
    assert sorted(batches) == [[1], [2], [3], [4]]
    assert torch.get_num_threads() == 4


def test_an_error_in_a_thread_ends_the_run(threads):
    threads(2)
    with pytest.raises(ZeroDivisionError):
        run_by_length([1, 0, 2], int, lambda batch: [1 / number for number in batch], batch_size=2)
    assert torch.get_num_threads() == 2


def test_on_the_cpu_a_forward_has_no_more_tokens_than_pay(threads):
    threads(1)
    batches = []
    run_by_length([400, 2000, 300, 500, 10], int, lambda batch: batches.append(batch) or batch)
    assert batches == [[2000], [500, 400], [300, 10]]


def test_linear_layers_give_in_onednn_what_they_give_in_mkl():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(24, 48), torch.nn.Linear(48, 8, bias=False))
    halves = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
    inputs = torch.randn(2, 5, 24)
    expected = layers(inputs)
    with torch.inference_mode():
        torch.testing.assert_close(in_onednn(layers)(inputs), expected)
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert all(type(layer) is not torch.nn.Linear for layer in layers)
    assert type(in_onednn(halves)) is torch.nn.Linear


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


@pytest.mark.parametrize("text", ["", " \t\n\u00a0", "\x00\x01", "\u200b\u202e", "\ud800"])
def test_a_text_without_a_visible_character_is_empty(text):
    assert is_empty(text)
    assert not is_empty(text + "x")
    assert not is_empty(text + "漢")


def test_lone_surrogates_become_question_marks_and_the_rest_of_a_text_is_kept(tiny):
    text = "a\ud800b 漢🙂\x00"
    assert tokenizable(text) == "a?b 漢🙂\x00"
    assert tokenizable("abcdef", 3) == "abc"
    tokenizer = load_model("AutoModelForCausalLM", tiny)[1]
    with pytest.raises(TypeError):
        tokenizer(text)
    assert tokenizer(tokenizable(text))["input_ids"]


class Tokenizer:
    """What `token_limit` asks of a tokenizer."""

    def __init__(self, model_max_length=10**30):
        self.model_max_length = model_max_length


def model(config):
    return AutoModel.from_config(config(hidden_size=8, num_attention_heads=1, **SHAPES[config]))


SHAPES = {
    BertConfig: {"intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 5, "max_position_embeddings": 20},
    RobertaConfig: {"intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 5, "max_position_embeddings": 20},
    BloomConfig: {"n_layer": 1, "vocab_size": 5},
}


def test_the_token_limit_is_that_of_the_model_or_the_tokenizer_whichever_is_less():
    bert = model(BertConfig)
    assert token_limit(bert, Tokenizer()) == 20
    assert token_limit(bert, Tokenizer(12)) == 12
    assert token_limit(bert, Tokenizer(), unknown=7) == 20


def test_roberta_takes_as_many_tokens_as_its_forward_does():
    roberta = model(RobertaConfig)  # padding is token 1: positions begin at 2
    limit = token_limit(roberta, Tokenizer())
    assert limit == 18
    assert roberta(torch.full((1, limit), 4)).last_hidden_state.shape[1] == limit
    with pytest.raises((IndexError, RuntimeError)):
        roberta(torch.full((1, limit + 1), 4))


def test_a_model_without_positions_takes_what_the_caller_says():
    bloom = model(BloomConfig)
    assert token_limit(bloom, Tokenizer()) == 512
    assert token_limit(bloom, Tokenizer(100)) == 100
    assert token_limit(bloom, Tokenizer(), unknown=2048) == 2048


def test_rows_are_padded_on_the_right_and_masked():
    ids, mask = pad_right([[5, 6, 7], [8]], torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_options_of_batches_are_checked():
    check_batching(1, 8)
    check_batching(1, None)
    with pytest.raises(ValueError, match="batch_size = 0: must be at least 1"):
        check_batching(0)
    with pytest.raises(ValueError, match="max_length = 7: must be at least 8"):
        check_batching(1, 7)
    with pytest.raises(ValueError, match="max_length = 1: must be at least 2"):
        check_batching(1, 1, shortest=2)
