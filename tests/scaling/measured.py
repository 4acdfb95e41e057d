"""Bytes that a training step really takes on the CPU, counted tensor by tensor."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


def llama(layers: int = 3, **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 8, "num_key_value_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(
            **{**sizes, "vocab_size": 500, "max_position_embeddings": 512, **config, "num_hidden_layers": layers}
        )
    )


def saved_bytes(
    model: nn.Module, batch: int, length: int, *, autocast: bool = False, checkpointing: bool = False
) -> int:
    """What autograd holds after the forward pass of the trunk: each storage once, parameters left out.

    Each row is padded on the left by a token more than the last, as prompts of different lengths are.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(3, 400, (batch, length))
    mask = torch.ones_like(ids)
    for row in range(batch):
        mask[row, :row] = 0
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with context, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    size = sum(storage.nbytes() for storage in held.values())
    del output
    return size
