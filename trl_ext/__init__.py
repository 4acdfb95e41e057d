"""trl-ext: what Hugging Face TRL does not have, hung on the hooks that it does have."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_ext.optim.optimizers import make_optimizer
    from trl_ext.optim.schedulers import make_scheduler
    from trl_ext.rewards.build import make_reward, make_reward_funcs
    from trl_ext.rewards.registry import list_rewards, register_reward
    from trl_ext.trainers.cispo_config import CISPOConfig
    from trl_ext.trainers.cispo_trainer import CISPOTrainer
    from trl_ext.trainers.hybrid_config import HybridConfig
    from trl_ext.trainers.hybrid_trainer import HybridTrainer
    from trl_ext.trainers.ppo_config import PPOConfig
    from trl_ext.trainers.ppo_trainer import PPOTrainer

__version__ = "0.1.0.dev0"

_PUBLIC = {
    "list_rewards": "trl_ext.rewards.registry",
    "make_optimizer": "trl_ext.optim.optimizers",
    "make_reward": "trl_ext.rewards.build",
    "make_reward_funcs": "trl_ext.rewards.build",
    "make_scheduler": "trl_ext.optim.schedulers",
    "register_reward": "trl_ext.rewards.registry",
    "CISPOConfig": "trl_ext.trainers.cispo_config",
    "CISPOTrainer": "trl_ext.trainers.cispo_trainer",
    "HybridConfig": "trl_ext.trainers.hybrid_config",
    "HybridTrainer": "trl_ext.trainers.hybrid_trainer",
    "PPOConfig": "trl_ext.trainers.ppo_config",
    "PPOTrainer": "trl_ext.trainers.ppo_trainer",
}

__all__ = [
    "CISPOConfig",
    "CISPOTrainer",
    "HybridConfig",
    "HybridTrainer",
    "PPOConfig",
    "PPOTrainer",
    "list_rewards",
    "make_optimizer",
    "make_reward",
    "make_reward_funcs",
    "make_scheduler",
    "register_reward",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `trl_ext.losses` never waits for TRL."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
