"""The reward that an environment gave, as a reward function of a trainer."""

from collections.abc import Callable
from typing import Any

from trl_ext.agents.trajectory import Trajectory, successes
from trl_ext.errors import RewardError


def environment_reward(
    completions: list[Any],
    trajectory: list[Trajectory] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    log_extra: Callable[[str, list[Any]], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """The sum of an episode's rewards; None for one that failed. For `rollout_func=environment_rollout(...)`.

    `PPOTrainer` leaves each turn's reward on the turn's last token. Logs `episode/success`, `episode/turns`,
    `episode/failed`, `episode/truncated` and the metrics that the environment has in its `info`.

    Raises:
        RewardError: there are no trajectories.
    """
    if trajectory is None:
        raise RewardError("environment_reward needs a trainer with rollout_func=environment_rollout(...)")
    if log_metric is not None:
        for name, value in episode_metrics(trajectory).items():
            log_metric(f"episode/{name}", value)
    if log_extra is not None:
        log_extra("failure", [one.failure or "" for one in trajectory])
    return [one.reward for one in trajectory]


environment_reward.token_column = "token_rewards"  # type: ignore[attr-defined]


def episode_metrics(trajectories: list[Trajectory]) -> dict[str, float]:
    """Means over episodes; of those that failed nothing but their share counts."""
    played = [one for one in trajectories if one.failure is None]
    metrics = {"failed": 1.0 - len(played) / len(trajectories)}
    if not played:
        return metrics
    if known := successes(played):
        metrics["success"] = sum(known) / len(known)
    metrics["turns"] = sum(one.turns for one in played) / len(played)
    metrics["truncated"] = sum(bool(one.truncated) for one in played) / len(played)
    for name in sorted({name for one in played for name in one.metrics} - set(metrics)):
        values = [one.metrics[name] for one in played if name in one.metrics]
        metrics[name] = sum(values) / len(values)
    return metrics
