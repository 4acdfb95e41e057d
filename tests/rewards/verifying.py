"""What the tests of the verifiers share."""

import math

from trl_ext.rewards import make_reward

HOSTILE = [
    "",
    " \n\t",
    "\0",
    "\ud800",
    "😀" * 50,
    "שלום ٤٢",
    "a" * 10**6,
    "\\boxed{",
    "answer \\boxed{\0}",
    "}{" * 1000,
]


def each(spec: dict, completions: list[str], target: list) -> list[float | None]:
    scores = [make_reward(spec).score(c, t) for c, t in zip(completions, target, strict=True)]
    return [None if math.isnan(score) else score for score in scores]


def items(text: str) -> list[str]:
    """What bars and line ends separate."""
    return text.replace("\n", "|").split("|")


def structure(parsed: list) -> list[str]:
    """What math-verify's parse gave, in a form that can be compared: == of sympy evaluates."""
    from sympy import srepr

    return [part if isinstance(part, str) else f"{type(part)} {srepr(part)}" for part in parsed]
