"""The weights of a policy as one plain model."""

from typing import Any

from torch import Tensor

from trl_ext.trainers.sharding import gathered


def merged_state_dict(policy: Any) -> dict[str, Tensor]:
    """The state dict of the base model of a PEFT model, adapters merged in; the policy itself stays as it is."""
    with gathered(policy.parameters()):
        policy.merge_adapter()
        try:
            return {
                name.replace(".base_layer", ""): tensor.detach().clone()
                for name, tensor in policy.get_base_model().state_dict().items()
                if policy.prefix not in name
            }
        finally:
            policy.unmerge_adapter()
