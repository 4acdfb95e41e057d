"""A score of an episode by four weighted criteria, without a model."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from trl_ext.agents.actions import ToolCallParser
from trl_ext.agents.trajectory import content_text, reply_places
from trl_ext.errors import ActionError, ConfigError

WEIGHTS = {"accuracy": 0.4, "efficiency": 0.3, "completeness": 0.2, "satisfaction": 0.1}


def episode_rubric(
    episode: Any,
    *,
    expected: Any = None,
    optimal_turns: int | None = None,
    required_actions: Sequence[str] = (),
    weights: Mapping[str, float] = WEIGHTS,
) -> dict[str, float] | None:
    """The weighted mean of four criteria, each from 0 to 1, and each of them: `{"score": ..., "accuracy": ..., ...}`.

    accuracy (0.4): with `expected`, how alike it and the last reply are (difflib's ratio, capitals apart); otherwise 1
        for success, 0 for none.
    efficiency (0.3): 1 up to `optimal_turns`, then 1 - 0.5 * (turns - optimal) / optimal, at least 0.
    completeness (0.2): the share of `required_actions` among the tool calls; where none is required, 1 if the episode
        was brought to its end, 0.5 if it was cut off.
    satisfaction (0.1): 1 - 0.1 for each reply that was no action - 0.2 per minute after the first 30 s, at least 0.

    What cannot be told (accuracy without success or `expected`, efficiency without `optimal_turns`) is left out, and
    the others' weights count for it.

    Args:
        episode: a `Trajectory`, or a dict of what one has: `messages`, `turns`, `terminated`, `success`, `failure`,
            `metrics["invalid"]`, `seconds["episode"]`.

    Returns:
        None for an episode that failed, or of which no criterion can be told.

    Raises:
        ConfigError: an unknown criterion in `weights`, one below 0, or `optimal_turns` below 1.
    """
    if unknown := sorted(set(weights) - set(WEIGHTS)):
        raise ConfigError(f"weights: no criterion {', '.join(map(repr, unknown))}; there are {', '.join(WEIGHTS)}")
    if any(weight < 0 for weight in weights.values()):
        raise ConfigError(f"weights = {dict(weights)}: must be at least 0")
    if optimal_turns is not None and optimal_turns < 1:
        raise ConfigError(f"optimal_turns = {optimal_turns}: must be at least 1")
    if _get(episode, "failure"):
        return None
    criteria = {
        "accuracy": _accuracy(episode, expected),
        "efficiency": None if optimal_turns is None else _efficiency(_get(episode, "turns", 0), optimal_turns),
        "completeness": _completeness(episode, required_actions),
        "satisfaction": _satisfaction(episode),
    }
    known = {name: value for name, value in criteria.items() if value is not None and weights.get(name)}
    if not known:
        return None
    total = sum(weights[name] for name in known)
    return {"score": sum(weights[name] * value for name, value in known.items()) / total, **known}


def _accuracy(episode: Any, expected: Any) -> float | None:
    if expected is not None:
        return SequenceMatcher(None, str(expected).lower(), _last_reply(episode).lower()).ratio()
    success = _get(episode, "success")
    return None if success is None else float(success)


def _efficiency(turns: int, optimal: int) -> float:
    return min(1.0, max(0.0, 1.0 - 0.5 * (turns - optimal) / optimal))


def _completeness(episode: Any, required: Sequence[str]) -> float:
    if not required:
        return 1.0 if _get(episode, "terminated") else 0.5
    done = set(_actions(episode))
    return sum(action in done for action in required) / len(required)


def _satisfaction(episode: Any) -> float:
    metrics, seconds = _get(episode, "metrics") or {}, _get(episode, "seconds") or {}
    minutes_late = max(0.0, (float(seconds.get("episode", 0)) - 30.0) / 60.0)
    return max(0.0, 1.0 - 0.1 * float(metrics.get("invalid", 0)) - 0.2 * minutes_late)


def _actions(episode: Any) -> Iterable[str]:
    """The names of the tool calls: of messages that have them parsed, and of replies as `ToolCallParser` reads them."""
    for message in _replies(episode):
        for call in message.get("tool_calls") or []:
            yield str(call.get("function", call).get("name"))
        with contextlib.suppress(ActionError):
            yield ToolCallParser().parse(content_text(message))["name"]


def _last_reply(episode: Any) -> str:
    replies = _replies(episode)
    return str(replies[-1].get("content") or "") if replies else ""


def _replies(episode: Any) -> list[dict[str, Any]]:
    """The messages that the model wrote: not those of examples in the prompt, where the number of turns is known."""
    messages = _get(episode, "messages") or []
    return [messages[place] for place in reply_places(messages, _get(episode, "turns", len(messages)))]


def _get(episode: Any, name: str, default: Any = None) -> Any:
    return episode.get(name, default) if isinstance(episode, Mapping) else getattr(episode, name, default)
