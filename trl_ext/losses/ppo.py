"""PPO's policy and value losses."""

import torch
from torch import Tensor

from trl_ext.losses.masking import log_ratio, normalized_sum


def ppo_clip_loss(
    per_token_logps: Tensor,
    old_per_token_logps: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    cliprange_low: float = 0.2,
    cliprange_high: float = 0.2,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """PPO clipped policy loss (Schulman et al., arXiv 1707.06347, Eq. 7), its two ranges apart (DAPO's clip-higher).

        L = - (1/N) sum_{i,t} min(r A, clip(r, 1 - cliprange_low, 1 + cliprange_high) A),    r = pi / pi_old

    Shapes: every tensor is (B, T); `advantages` may be (B, 1). N is `normalizer`, or the number of ones in
    `completion_mask` if None. Returns a scalar.
    A token that the clip holds (A > 0 and r above, or A < 0 and r below) has no gradient.
    """
    ratio = torch.exp(log_ratio(per_token_logps, old_per_token_logps, completion_mask))
    clipped = ratio.clamp(1.0 - cliprange_low, 1.0 + cliprange_high)
    return normalized_sum(-torch.min(ratio * advantages, clipped * advantages), completion_mask, normalizer)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    completion_mask: Tensor,
    *,
    cliprange_value: float | None = 0.2,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """Clipped value loss ("The N Implementation Details of RLHF with PPO"; TRL 1.12's `PPOTrainer`).

        L = (1/N) sum_{i,t} 1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2),    c = cliprange_value

    Shapes: every tensor is (B, T). N is `normalizer`, or the number of ones in `completion_mask` if None. Returns a
    scalar. `cliprange_value=None` leaves the clip out. The coefficient `vf_coef` is the caller's.
    """
    mask = completion_mask.bool()
    returns = torch.where(mask, returns, values.detach())
    error = (values - returns) ** 2
    if cliprange_value is not None:
        old_values = torch.where(mask, old_values, values.detach())
        clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
        error = torch.max(error, (clipped - returns) ** 2)
    return normalized_sum(0.5 * error, completion_mask, normalizer)
