"""PPO: the rewards per token, the policy and value losses, and the share of tokens that each clip holds."""

import torch
from torch import Tensor

from trl_ext.losses.masking import log_ratio, masked_mean, normalized_sum


def token_rewards(
    scores: Tensor,
    completion_mask: Tensor,
    per_token_kl: Tensor | None,
    kl_coef: float,
    per_token_scores: Tensor | None = None,
) -> Tensor:
    """The score on the last token that the model wrote, minus `kl_coef` times the KL of every such token.

    "The N Implementation Details of RLHF with PPO", detail 2. Shapes: `scores` is (B,), the others and the result
    (B, T); 0 where the mask is 0. TRL 1.12 puts the score one token further where there is room.
    `per_token_scores` are the parts of a score that have a token of their own (the rewards of turns): they stay there,
    and the last token gets the rest.
    """
    mask = completion_mask.bool()
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    placed = torch.zeros_like(mask, dtype=scores.dtype)
    if per_token_scores is not None:
        placed = torch.where(mask, per_token_scores, 0.0).to(scores.dtype)
    rewards = placed + torch.where(last, (scores - placed.sum(1)).unsqueeze(1), 0.0)
    if per_token_kl is not None:
        rewards = rewards - kl_coef * torch.where(mask, per_token_kl, 0.0)
    return rewards


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
    error, clipped_error = _value_errors(values, old_values, returns, completion_mask, cliprange_value)
    return normalized_sum(0.5 * torch.max(error, clipped_error), completion_mask, normalizer)


def value_clip_fraction(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    completion_mask: Tensor,
    *,
    cliprange_value: float | None = 0.2,
) -> Tensor:
    """The share of tokens whose clipped value has the larger error (TRL 1.12's `val/clipfrac_avg`), a scalar.

    Shapes as in `value_loss`.
    """
    error, clipped_error = _value_errors(values, old_values, returns, completion_mask, cliprange_value)
    return masked_mean((clipped_error > error).to(values.dtype), completion_mask)


def policy_clip_fraction(
    per_token_logps: Tensor,
    old_per_token_logps: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    cliprange_low: float = 0.2,
    cliprange_high: float = 0.2,
) -> Tensor:
    """The share of tokens that the clip of `ppo_clip_loss` holds (TRL 1.12's `policy/clipfrac_avg`), a scalar.

    Shapes as in `ppo_clip_loss`.
    """
    ratio = torch.exp(log_ratio(per_token_logps, old_per_token_logps, completion_mask))
    held = ((advantages > 0) & (ratio > 1.0 + cliprange_high)) | ((advantages < 0) & (ratio < 1.0 - cliprange_low))
    return masked_mean(held.to(ratio.dtype), completion_mask)


def _value_errors(
    values: Tensor, old_values: Tensor, returns: Tensor, completion_mask: Tensor, cliprange_value: float | None
) -> tuple[Tensor, Tensor]:
    """(V - R)^2 with V as it is and with V clipped, both (B, T)."""
    mask = completion_mask.bool()
    returns = torch.where(mask, returns, values.detach())
    error = (values - returns) ** 2
    if cliprange_value is None:
        return error, error
    old_values = torch.where(mask, old_values, values.detach())
    # not old + (new - old).clamp(...), whose rounding would count values as clipped that are not
    clipped = values.clamp(old_values - cliprange_value, old_values + cliprange_value)
    return error, (clipped - returns) ** 2
