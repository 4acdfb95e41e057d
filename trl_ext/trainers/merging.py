"""The weights of a policy as one plain model, and the average of two states of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from trl_ext.trainers.value_function import NAME

Weights = dict[str, Tensor]


def merged_state_dict(policy: Any) -> Weights:
    """The base model of a PEFT model with the adapters merged in, in main memory; the policy itself stays as it is.

    Under ZeRO-3 its parameters must have been gathered.
    """
    base = policy.get_base_model()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items() if ".base_layer." in name}
    policy.merge_adapter()
    try:
        return {
            name.replace(".base_layer", ""): tensor.detach().to("cpu", copy=True)
            for name, tensor in base.state_dict().items()
            if policy.prefix not in name
        }
    finally:
        policy.unmerge_adapter()
        after = base.state_dict()
        for name, tensor in before.items():  # what was added and taken off again has been rounded
            after[name].copy_(tensor)


def plain_state_dict(policy: Any) -> Weights:
    """A copy, in main memory, of the policy as a plain model: adapters merged, no value function."""
    if isinstance(policy, PeftModel):
        return merged_state_dict(policy)
    return {
        name: tensor.detach().to("cpu", copy=True)
        for name, tensor in policy.state_dict().items()
        if not name.startswith(f"{NAME}.")
    }


def trained_weights(policy: nn.Module) -> Weights:
    """A copy, in main memory, of what is trained of the policy: all of it or its adapters."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in _trained(policy)}


@contextmanager
def with_weights(policy: nn.Module, weights: Weights) -> Iterator[None]:
    """Inside, the policy has these weights (`trained_weights`) in the place of its own."""
    own = trained_weights(policy)
    _put(policy, weights)
    try:
        yield
    finally:
        _put(policy, own)


def average(first: Weights, second: Weights, weight: float) -> Weights:
    """(1 - `weight`) `first` + `weight` `second`, in float32 or finer. What is no float is that of `second`."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        if not b.is_floating_point():
            return b
        kind = torch.promote_types(b.dtype, torch.float32)
        return ((1.0 - weight) * a.to("cpu", kind) + weight * b.to("cpu", kind)).to(b.dtype)

    return {name: mean(first[name], tensor) for name, tensor in second.items()}


def _trained(policy: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [
        (name, parameter)
        for name, parameter in policy.named_parameters()
        if parameter.requires_grad and not name.startswith(f"{NAME}.")
    ]


@torch.no_grad()
def _put(policy: nn.Module, weights: Weights) -> None:
    for name, parameter in _trained(policy):
        parameter.copy_(weights[name])
