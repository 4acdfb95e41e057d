"""From a spec to TRL reward callables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_ext.rewards.plugins import load_plugins
from trl_ext.rewards.reward import Reward
from trl_ext.rewards.spec import load_spec, parse

Spec = dict[str, Any] | str | Path


def make_reward(spec: Spec, plugins: Sequence[str | Path] = ()) -> Reward:
    """One TRL reward callable from a spec: a dict, a JSON string or the path of a JSON file.

    `plugins` are Python files of the user's own that register more reward types; they are executed.

    Raises:
        ConfigError: what in the spec is wrong, where, and what is allowed.
    """
    paths = [str(plugin) for plugin in plugins]
    load_plugins(paths)
    reward = Reward(parse(load_spec(spec)), paths)
    _name_apart(reward)
    return reward


def make_reward_funcs(spec: Spec, plugins: Sequence[str | Path] = ()) -> tuple[list[Reward], list[float]]:
    """`(reward_funcs, reward_weights)` for a TRL trainer: one function per component of a `weighted_sum`.

    TRL then logs each component by its name. The weights are divided by their sum, as `make_reward` does, so that both
    train the same. Any other spec, and a sum with a `postprocess` or a `when` of its own, is one function of weight 1.
    When one of the functions is called, those that wait for others (judges, code) start on the same batch too.

    Raises:
        ConfigError: as `make_reward`.
    """
    reward = make_reward(spec, plugins)
    if reward.type != "weighted_sum" or reward.common.postprocess or reward.common.when:
        return [reward], [1.0]
    for child in reward.children:
        child.siblings = reward.children
    weights = [child.common.weight for child in reward.children]
    return reward.children, [weight / (sum(weights) or 1.0) for weight in weights]


def _name_apart(reward: Reward) -> None:
    """Give parts of the same name a number: TRL would merge their metrics."""
    taken: set[str] = set()
    for part in reward.parts():
        name, number = part.__name__, 2
        while part.__name__ in taken:
            part.__name__ = f"{name}_{number}"
            number += 1
        taken.add(part.__name__)
