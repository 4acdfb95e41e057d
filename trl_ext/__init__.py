"""trl-ext: what Hugging Face TRL does not have, hung on the hooks that it does have."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_ext.rewards.build import make_reward, make_reward_funcs
    from trl_ext.rewards.registry import list_rewards, register_reward
    from trl_ext.trainers.cispo_config import CISPOConfig
    from trl_ext.trainers.cispo_trainer import CISPOTrainer
    from trl_ext.trainers.ppo_config import PPOConfig
    from trl_ext.trainers.ppo_trainer import PPOTrainer

__version__ = "0.1.0.dev0"

_PUBLIC = {
    "list_rewards": "trl_ext.rewards.registry",
    "make_reward": "trl_ext.rewards.build",
    "make_reward_funcs": "trl_ext.rewards.build",
    "register_reward": "trl_ext.rewards.registry",
    "CISPOConfig": "trl_ext.trainers.cispo_config",
    "CISPOTrainer": "trl_ext.trainers.cispo_trainer",
    "PPOConfig": "trl_ext.trainers.ppo_config",
    "PPOTrainer": "trl_ext.trainers.ppo_trainer",
}

__all__ = [
    "CISPOConfig",
    "CISPOTrainer",
    "PPOConfig",
    "PPOTrainer",
    "list_rewards",
    "make_reward",
    "make_reward_funcs",
    "register_reward",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `trl_ext.losses` never waits for TRL."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
