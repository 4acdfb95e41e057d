"""GRPO: rewards compared inside a group of completions of one prompt, PPO's clip, and a KL penalty."""

from typing import Literal

import torch
from torch import Tensor

from trl_ext.losses.kl import kl_estimate
from trl_ext.losses.masking import normalized_sum
from trl_ext.losses.ppo import ppo_clip_loss


def group_relative_advantages(
    rewards: Tensor, num_generations: int, *, scale_rewards: Literal["group", "none"] = "group"
) -> Tensor:
    """A_i = (r_i - mean(group)) / (std(group) + 1e-4) (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    Shapes: `rewards` is (B,), the `num_generations` completions of a prompt beside each other; so is the result.
    `scale_rewards="none"` leaves the division out (Dr. GRPO). The std is the unbiased one and 1e-4 is TRL's. A group
    whose rewards are all the same gets zeros.

    Raises:
        ValueError: B is no multiple of `num_generations`, or that is less than 2.
    """
    if num_generations < 2 or rewards.numel() % num_generations:
        raise ValueError(
            f"{rewards.numel()} rewards in groups of {num_generations}: need a multiple of num_generations >= 2"
        )
    groups = rewards.view(-1, num_generations)
    advantages = groups - groups.mean(1, keepdim=True)
    if scale_rewards == "group":
        advantages = advantages / (groups.std(1, keepdim=True) + 1e-4)
    return advantages.view(-1)


def grpo_loss(
    per_token_logps: Tensor,
    old_per_token_logps: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    ref_per_token_logps: Tensor | None = None,
    beta: float = 0.04,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """GRPO loss with its KL penalty (DeepSeekMath, arXiv 2402.03300, Eq. 3-4).

        L = (1/N) sum_{i,t} [ - min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A) + beta k3(pi, pi_ref) ]

    Shapes: every tensor is (B, T); `advantages` may be (B, 1) (see `group_relative_advantages`). N is `normalizer`, or
    the number of ones in `completion_mask` if None. Returns a scalar. No penalty without `ref_per_token_logps`.

    Deviations: the paper averages over each completion first; here tokens weigh the same (DAPO, and TRL's default).
    """
    loss = ppo_clip_loss(
        per_token_logps,
        old_per_token_logps,
        advantages,
        completion_mask,
        cliprange_low=epsilon_low,
        cliprange_high=epsilon_high,
        normalizer=normalizer,
    )
    if ref_per_token_logps is None:
        return loss
    reference = torch.where(completion_mask.bool(), ref_per_token_logps, per_token_logps).detach()
    penalty = kl_estimate(per_token_logps, reference, "k3")
    return loss + beta * normalized_sum(penalty, completion_mask, normalizer)
