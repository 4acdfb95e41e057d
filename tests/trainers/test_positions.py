import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    OPTConfig,
    Qwen3NextConfig,
)

from trl_ext.trainers.positions import depend_on_batch, only_distances_count

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(), True),
        (Gemma3TextConfig(), True),  # two kinds of layers, each with its own
        (GPT2Config(), False),  # learned
        (OPTConfig(), False),  # learned
        (Ministral3Config(), False),  # queries are scaled by their position
        (Qwen3NextConfig(), False),  # linear attention
    ],
    ids=lambda value: type(value).__name__,
)
def test_rotary_models_alone_may_lose_padding_on_the_left(config, expected):
    assert only_distances_count(config) == expected
    assert not depend_on_batch(config)


def test_dynamic_rotary_positions_do_depend_on_the_batch():
    """A row has other logits beside a longer one, beyond the length that the model was made for."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 8}
    ids = torch.randint(20, (1, 16))
    for rope, depends in (({"rope_type": "default", "rope_theta": 10_000.0}, False), (DYNAMIC, True)):
        config = LlamaConfig(**sizes, **heads, rope_parameters=rope)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            alone, beside = model(ids[:, :8]).logits, model(ids).logits[:, :8]
        assert depend_on_batch(config) == depends == ((alone - beside).abs().max() > 1e-5)
