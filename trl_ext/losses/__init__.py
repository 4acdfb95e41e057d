"""The maths, as functions from tensors to tensors. Imports torch and nothing else."""

from trl_ext.losses.cispo import cispo_loss, cispo_weight
from trl_ext.losses.gae import generalized_advantage_estimate, length_adaptive_lambda
from trl_ext.losses.grpo import group_relative_advantages, grpo_loss
from trl_ext.losses.kl import kl_estimate
from trl_ext.losses.masking import masked_mean, masked_sum, masked_var, masked_whiten
from trl_ext.losses.ppo import (
    policy_clip_fraction,
    ppo_clip_loss,
    token_rewards,
    value_clip_fraction,
    value_loss,
)

__all__ = [
    "cispo_loss",
    "cispo_weight",
    "generalized_advantage_estimate",
    "group_relative_advantages",
    "grpo_loss",
    "kl_estimate",
    "length_adaptive_lambda",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "masked_whiten",
    "policy_clip_fraction",
    "ppo_clip_loss",
    "token_rewards",
    "value_clip_fraction",
    "value_loss",
]
