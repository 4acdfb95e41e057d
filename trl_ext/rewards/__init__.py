"""Rewards: JSON specs become TRL reward callables; new reward types are registered by decorator."""

from trl_ext.rewards.build import make_reward, make_reward_funcs
from trl_ext.rewards.registry import list_rewards, register_reward
from trl_ext.rewards.reward import Reward
from trl_ext.rewards.state import RewardStateCallback

__all__ = ["Reward", "RewardStateCallback", "list_rewards", "make_reward", "make_reward_funcs", "register_reward"]
