"""Generalized advantage estimation over the tokens that the model wrote."""

import torch
from torch import Tensor


@torch.no_grad()
def generalized_advantage_estimate(
    rewards: Tensor,
    values: Tensor,
    completion_mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 0.95,
    episode_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (GAE, Schulman et al., arXiv 1506.02438, Eq. 16).

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lam A_{t+1}
        R_t     = A_t + V_t

    Here t + 1 is the next token whose mask is 1: tool and environment tokens in between are skipped and not counted as
    steps. After the last such token the episode is over: its V_{t+1} and A_{t+1} are 0.

    Shapes: `rewards`, `values`, `completion_mask` and both results are (B, T). `lam` may be (B,) or (B, 1) for a lambda
    of its own per completion (VAPO's length-adaptive lambda). `episode_ids`, (B, T), tells the episodes of packed rows
    apart: where it changes, one is over. Rewards and values where the mask is 0 are not read, and
    both results are 0 there. No gradient flows.
    """
    mask = completion_mask.bool()
    lam = torch.as_tensor(lam, dtype=values.dtype, device=values.device).reshape(-1)
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(next_value)
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.size(1))):
        if episode_ids is not None and t + 1 < values.size(1):
            same = episode_ids[:, t] == episode_ids[:, t + 1]
            next_value, next_advantage = torch.where(same, next_value, 0.0), torch.where(same, next_advantage, 0.0)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        advantages[:, t] = torch.where(mask[:, t], advantage, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def length_adaptive_lambda(completion_mask: Tensor, alpha: float) -> Tensor:
    """lambda = 1 - 1 / (alpha * length), at least 0, shape (B,) (VAPO, arXiv 2504.05118, Eq. 5, alpha 0.05).

    `length` is the number of ones in the row of `completion_mask`, (B, T). With it the weights of the deltas of an
    advantage add up to alpha * length instead of a constant. Answers shorter than 1 / alpha get 0, which the paper does
    not speak of.
    """
    length = completion_mask.bool().sum(1)
    return (1.0 - 1.0 / (alpha * length.clamp(min=1))).clamp(min=0.0)
