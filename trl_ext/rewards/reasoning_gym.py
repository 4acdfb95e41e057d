"""The scores of reasoning-gym's tasks."""

import functools
import json
from collections.abc import Callable
from typing import Any

from trl_ext.errors import MissingExtraError, RewardError
from trl_ext.rewards.registry import register_reward
from trl_ext.rewards.text import Extract

# Their `score_answer` calls eval, or sympy's parse_expr, which evaluates, on the answer (reasoning-gym 0.1.25)
EVALUATING_TASKS = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "number_sorting",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)


@register_reward("reasoning_gym", leans_on="reasoning-gym", extra="smollm2", cost="10 us")
class ReasoningGym:
    """The own score, in [0, 1], of the reasoning-gym task that a row is from.

    Column `entry` holds the problem, as JSON or as a dict with `question`, `answer` and `metadata.source_dataset`.
    Scored is what stands in the last `<answer>` tags, or else the whole completion. A row without an entry is not
    scored.

    An answer longer than 10,000 characters and than ten times the reference is 0, as is one on which the scorer raises.

    The scorers of some tasks (`EVALUATING_TASKS`) run the answer as Python, in this process: whatever the model writes
    is executed. They are refused, unless `allow_code` says that this process is a sandbox.

    Raises:
        RewardError: an entry is malformed, or of a task that is refused.
    """

    def __init__(self, allow_code: bool = False):
        self.allow_code = allow_code

    def __call__(self, completions: list[str], entry: list[Any]) -> list[float | None]:
        return [self._score(c, e) if e else None for c, e in zip(completions, entry, strict=True)]

    def _score(self, completion: str, entry: Any) -> float:
        problem = json.loads(entry) if isinstance(entry, str) else entry
        try:
            task, gold = problem["metadata"]["source_dataset"], problem["answer"]
        except (KeyError, TypeError):
            raise RewardError(
                "column 'entry' holds no reasoning-gym problem: it needs answer and metadata.source_dataset"
            ) from None
        if task in EVALUATING_TASKS and not self.allow_code:
            raise RewardError(
                f"reasoning_gym: the scorer of {task!r} runs completions as Python code in this process; "
                'set "allow_code": true only inside a sandbox'
            )
        score = _task_scorer(task)
        answer = _ANSWER(completion) or completion.strip()
        if len(answer) > max(10_000, 10 * len(str(gold))):
            return 0.0
        try:
            return float(score(answer, problem))
        except Exception as error:
            try:
                score(gold, problem)
            except Exception:  # not the completion's fault
                raise RewardError(f"reasoning-gym cannot score an entry of {task!r}: {error}") from error
            return 0.0


_ANSWER = Extract(type="tag", tag="answer")


@functools.cache
def _task_scorer(task: str) -> Callable[[Any, Any], float]:
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError:
        raise MissingExtraError("the reward 'reasoning_gym' needs: pip install 'trl-ext[smollm2]'") from None
    try:
        return get_score_answer_fn(task)  # type: ignore[no-any-return]
    except ValueError as error:
        raise RewardError(f"column 'entry': {error}") from None
