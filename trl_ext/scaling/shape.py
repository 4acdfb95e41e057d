"""What of a model its memory depends on: counted on the meta device, so that no weight is read or made."""

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl_ext.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

# What configs call the width of an MLP. The others (GPT-2's where it is unset, BLOOM's, MPT's) have 4 * hidden_size.
_MLP_SIZES = ("moe_intermediate_size", "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")


@dataclass(frozen=True)
class ModelShape:
    """Numbers of parameters and sizes of a causal language model.

    `largest_module` is the most parameters that one module holds by itself, and `block` those of a decoder block;
    `adapter_sizes` is the sum over all linear layers but the head of inputs + outputs, and so the parameters of a LoRA
    adapter of rank 1. `head` is what a critic leaves out: 0 where the head is the embedding.
    """

    parameters: int
    embeddings: int
    head: int
    block: int
    largest_module: int
    adapter_sizes: int
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def trunk(self) -> int:
        return self.parameters - self.head


def shape_of(config: Any) -> ModelShape:
    """The shape of the model that `config` (a transformers config) describes.

    Raises:
        ConfigError: transformers has no causal language model for it, or it has no decoder blocks or attention.
    """
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    try:
        with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).partition("Model type should be")[0].split())  # what follows are 150 names
        raise ConfigError(f"no causal language model for {type(config).__name__}: {reason}") from None
    model.tie_weights()
    text = config.get_text_config()
    blocks = _blocks(model)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head]
    heads = getattr(text, "num_attention_heads", None)
    if heads is None:
        raise ConfigError(f"{type(config).__name__} has no attention heads: its memory cannot be estimated")
    of_mlp = (getattr(text, name, None) for name in _MLP_SIZES)
    experts = getattr(text, "num_experts_per_tok", None) or 1
    return ModelShape(
        parameters=_count(model),
        embeddings=embeddings.weight.numel(),
        head=0 if head is None or head.weight is embeddings.weight else _count(head),
        block=max(map(_count, blocks)),
        largest_module=max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()),
        adapter_sizes=sum(sum(module.weight.shape) for module in linear),
        layers=len(blocks),
        hidden_size=text.hidden_size,
        intermediate_size=experts * next(filter(None, of_mlp), 4 * text.hidden_size),
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
    )


def _count(module: "nn.Module") -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _blocks(model: "nn.Module") -> "nn.ModuleList":
    """The longest list of modules: the decoder blocks, whatever the architecture calls them."""
    from torch import nn

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise ConfigError(f"{type(model).__name__} has no list of decoder blocks: its memory cannot be estimated")
    return max(lists, key=_count)
