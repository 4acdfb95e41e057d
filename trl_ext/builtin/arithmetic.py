"""The built-in task: single-digit sums, differences and products, 300 problems, a fifth of them held out."""

import operator
import random
from typing import Any

from datasets import Dataset

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
PROBLEMS = [
    (f"{a}{sign}{b}=", str(operation(a, b)))
    for a in range(10)
    for b in range(10)
    for sign, operation in OPERATIONS.items()
]
MAX_ANSWER_TOKENS = 4  # "-9" or "81" and the end-of-sequence token, and one to spare
_SPLIT_SEED = 0  # which problems are held out never changes: figures of different runs stay comparable


def arithmetic_prompts() -> tuple[Dataset, Dataset]:
    """The problems trained on (240) and those held out (60), with columns `prompt` and `answer`."""
    rows = [{"prompt": question, "answer": answer} for question, answer in PROBLEMS]
    random.Random(_SPLIT_SEED).shuffle(rows)
    heldout = len(rows) // 5
    return Dataset.from_list(rows[heldout:]), Dataset.from_list(rows[:heldout])


def arithmetic_demonstrations(per_problem: int = 64, wrong: float = 0.5, seed: int = 0) -> Dataset:
    """Demonstrations of the problems trained on, with columns `prompt` and `completion`, of which a share is wrong.

    A model that imitates them ends near a sampled accuracy of 1 - `wrong` at best; one that is rewarded for being right
    does not. A wrong answer is uniform over -9..81. The held-out problems are not demonstrated.
    """
    rng = random.Random(seed)
    rows = []
    for problem in arithmetic_prompts()[0]:
        for _ in range(per_problem):
            answer = str(rng.randint(-9, 81)) if rng.random() < wrong else problem["answer"]
            rows.append({"prompt": problem["prompt"], "completion": answer})
    return Dataset.from_list(rows)


def exact_answer(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """TRL reward callable: 1.0 where the completion is the answer, else 0.0. Its mean is the sampled accuracy."""
    return [float(completion.strip() == right) for completion, right in zip(completions, answer, strict=True)]
