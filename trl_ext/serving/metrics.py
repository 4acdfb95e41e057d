"""The status as Prometheus reads it."""

from trl_ext.serving.replies import Counters, Status


def prometheus_text(status: Status) -> str:
    """Text format 0.0.4: counters of this server, and gauges of what is going on."""
    counters = {
        f"trl_ext_episodes_{name}_total": (getattr(status.counters, name), _help(name))
        for name in ("asked", "done", "failed", "dropped", "requeued")
    }
    counters |= {
        f"trl_ext_{name}_total": (getattr(status.counters, name), _help(name))
        for name in ("duplicates", "stale", "garbage", "refused")
    }
    counters["trl_ext_completions_total"] = (status.policy.completions, "turns sampled")
    counters["trl_ext_tokens_total"] = (status.policy.tokens, "tokens sampled")
    train = [point for point in status.series if point.split == "train"]
    gauges: dict[str, tuple[float | None, str]] = {
        "trl_ext_policy_version": (status.policy.version, "the trainer's step"),
        "trl_ext_workers": (len(status.workers), "workers and agents"),
        "trl_ext_episodes_running": (status.queues.running, "episodes that are played"),
        "trl_ext_episodes_queued": (status.queues.episodes, "episodes that wait for a worker"),
        "trl_ext_completions_waiting": (status.queues.completions, "turns that wait for the policy"),
        "trl_ext_reward": (train[-1].reward if train else None, "mean reward of the last rollout"),
        "trl_ext_success": (train[-1].success if train else None, "share of success in the last rollout"),
    }
    lines = []
    for kind, numbers in (("counter", counters), ("gauge", gauges)):
        for name, (value, text) in numbers.items():
            if value is not None:
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value:.17g}"]
    return "\n".join(lines) + "\n"


def _help(name: str) -> str:
    return Counters.model_fields[name].description or f"episodes {name}"
