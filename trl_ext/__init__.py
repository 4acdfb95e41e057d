"""trl-ext: what Hugging Face TRL does not have, hung on the hooks that it does have."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_ext.agents.environment import Environment, Step, from_gymnasium
    from trl_ext.agents.environment_reward import environment_reward
    from trl_ext.agents.evaluate import evaluate
    from trl_ext.agents.registry import list_environments, make_environment, register_environment
    from trl_ext.agents.rollout import environment_rollout
    from trl_ext.agents.rubric import episode_rubric
    from trl_ext.agents.tool_environment import tool_environment
    from trl_ext.agents.trajectory import TrajectoryRecorder
    from trl_ext.optim.optimizers import make_optimizer
    from trl_ext.optim.schedulers import make_scheduler
    from trl_ext.rewards.build import make_reward, make_reward_funcs
    from trl_ext.rewards.registry import list_rewards, register_reward
    from trl_ext.tracking.langfuse_episodes import LangfuseEpisodes
    from trl_ext.tracking.wandb_episodes import WandbEpisodes
    from trl_ext.trainers.cispo_config import CISPOConfig
    from trl_ext.trainers.cispo_trainer import CISPOTrainer
    from trl_ext.trainers.hybrid_config import HybridConfig
    from trl_ext.trainers.hybrid_trainer import HybridTrainer
    from trl_ext.trainers.ppo_config import PPOConfig
    from trl_ext.trainers.ppo_trainer import PPOTrainer

__version__ = "0.1.0.dev0"

_PUBLIC = {
    "environment_reward": "trl_ext.agents.environment_reward",
    "environment_rollout": "trl_ext.agents.rollout",
    "episode_rubric": "trl_ext.agents.rubric",
    "evaluate": "trl_ext.agents.evaluate",
    "from_gymnasium": "trl_ext.agents.environment",
    "list_environments": "trl_ext.agents.registry",
    "list_rewards": "trl_ext.rewards.registry",
    "make_environment": "trl_ext.agents.registry",
    "make_optimizer": "trl_ext.optim.optimizers",
    "make_reward": "trl_ext.rewards.build",
    "make_reward_funcs": "trl_ext.rewards.build",
    "make_scheduler": "trl_ext.optim.schedulers",
    "register_environment": "trl_ext.agents.registry",
    "register_reward": "trl_ext.rewards.registry",
    "tool_environment": "trl_ext.agents.tool_environment",
    "CISPOConfig": "trl_ext.trainers.cispo_config",
    "CISPOTrainer": "trl_ext.trainers.cispo_trainer",
    "Environment": "trl_ext.agents.environment",
    "HybridConfig": "trl_ext.trainers.hybrid_config",
    "HybridTrainer": "trl_ext.trainers.hybrid_trainer",
    "LangfuseEpisodes": "trl_ext.tracking.langfuse_episodes",
    "PPOConfig": "trl_ext.trainers.ppo_config",
    "PPOTrainer": "trl_ext.trainers.ppo_trainer",
    "Step": "trl_ext.agents.environment",
    "TrajectoryRecorder": "trl_ext.agents.trajectory",
    "WandbEpisodes": "trl_ext.tracking.wandb_episodes",
}

__all__ = [
    "CISPOConfig",
    "CISPOTrainer",
    "Environment",
    "HybridConfig",
    "HybridTrainer",
    "LangfuseEpisodes",
    "PPOConfig",
    "PPOTrainer",
    "Step",
    "TrajectoryRecorder",
    "WandbEpisodes",
    "environment_reward",
    "environment_rollout",
    "episode_rubric",
    "evaluate",
    "from_gymnasium",
    "list_environments",
    "list_rewards",
    "make_environment",
    "make_optimizer",
    "make_reward",
    "make_reward_funcs",
    "make_scheduler",
    "register_environment",
    "register_reward",
    "tool_environment",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `trl_ext.losses` never waits for TRL."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
