"""CISPO: clip the importance-sampling weight, never the gradient of a token."""

import torch
from torch import Tensor

from trl_ext.losses.masking import log_ratio, normalized_sum


def cispo_weight(
    ratio: Tensor,
    advantages: Tensor,
    *,
    importance_weight_min: float = 0.0,
    importance_weight_max: float = 5.0,
    trust_region_low: float | None = None,
    trust_region_high: float | None = None,
) -> Tensor:
    """The detached weight of each token's log-probability: clip(r, w_min, w_max) * M (MiniMax-M1, Eq. 5-7).

        M = 0 where (A > 0 and r > trust_region_high) or (A < 0 and r < trust_region_low), else 1

    All four bounds are absolute values of r, not distances from 1: the paper's 1 + eps is our bound. A None leaves that
    side of the trust region open. Shapes: `ratio` and `advantages` broadcast to (B, T).
    """
    ratio = ratio.detach()
    weight = ratio.clamp(importance_weight_min, importance_weight_max)
    if trust_region_high is not None:
        weight = weight.masked_fill((advantages > 0) & (ratio > trust_region_high), 0.0)
    if trust_region_low is not None:
        weight = weight.masked_fill((advantages < 0) & (ratio < trust_region_low), 0.0)
    return weight


def cispo_loss(
    per_token_logps: Tensor,
    old_per_token_logps: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    importance_weight_min: float = 0.0,
    importance_weight_max: float = 5.0,
    trust_region_low: float | None = None,
    trust_region_high: float | None = None,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """CISPO policy loss (MiniMax-M1, arXiv 2506.13585, Eq. 4-7).

        L = - (1/N) sum_{i,t} sg(clip(r_{i,t}, w_min, w_max) M_{i,t}) * A_{i,t} * log pi(o_{i,t}),    r = pi / pi_old

    Shapes: every tensor is (B, T); `advantages` may be (B, 1). N is `normalizer`, or the number of ones in
    `completion_mask` if None. Returns a scalar. Bounds as in `cispo_weight`, absolute.
    Gradients flow through `per_token_logps` only, never through r: a clipped token still learns, which is what sets
    CISPO apart from PPO's clip. A token outside the trust region does not.

    Deviations: the paper normalises per prompt group. That, like every weighting of rows, is a scale on `advantages`.
    """
    ratio = torch.exp(log_ratio(per_token_logps.detach(), old_per_token_logps, completion_mask))
    weight = cispo_weight(
        ratio,
        advantages,
        importance_weight_min=importance_weight_min,
        importance_weight_max=importance_weight_max,
        trust_region_low=trust_region_low,
        trust_region_high=trust_region_high,
    )
    return normalized_sum(-weight * advantages * per_token_logps, completion_mask, normalizer)
