"""Grammar, as an offline checker sees it."""

import functools
import threading
from typing import Any

from trl_ext.rewards.models import tokenizable
from trl_ext.rewards.registry import register_reward
from trl_ext.rewards.similarity import WORD

MAX_CHARACTERS = 4_000
# Remarks that are no errors, or that are the business of `spelling`.
TASTE = {"Enhancement", "Formatting", "Readability", "Redundancy", "Regionalism", "Spelling", "Style", "Typo"}

_lock = threading.Lock()  # a linter raises an error where two threads call it


@register_reward("grammar", leans_on="harper-py", extra="rewards", cost="10 ms")
class Grammar:
    """half / (half + d) for d grammar errors per 100 words, as Harper finds them: 1 without an error, 0.5 at `half`.

    Harper is an offline checker for English (it says little of texts in other languages). Errors are those of its kinds
    agreement, grammar, word choice, usage, eggcorn, punctuation, capitalization, repetition and the like, but not those
    of spelling (see `spelling`), style and formatting, nor headings that are not in title case. Text is read as
    Markdown: what is marked as code has no errors, but its words count. Harper misses errors: to score 1 is no proof.

    In (0, 1], and 0 for a text without words. Only the first 4,000 characters (`MAX_CHARACTERS`) count: Harper's time
    grows with the square of what it cannot read, up to a second for these. Own formula.

    Args:
        half: the errors per 100 words that halve the score.
    """

    def __init__(self, half: float = 5.0):
        if not 0 < half < float("inf"):
            raise ValueError(f"half = {half}: must be more than 0, and finite")
        self.half = half

    def __call__(self, completions: list[str]) -> list[float | None]:
        return [self._score(tokenizable(text, MAX_CHARACTERS)) for text in completions]

    def _score(self, text: str) -> float:
        words = len(WORD.findall(text))
        if not words:
            return 0.0
        with _lock:
            errors = sum(lint.lint_kind not in TASTE for lint in _linter().lint(text))
        return self.half / (self.half + 100 * errors / words)


@functools.cache
def _linter() -> Any:
    from harper import Linter

    linter = Linter()
    # Looking for the right spelling takes most of the time.
    linter.set_lint_config({**linter.get_lint_config(), "SpellCheck": False, "UseTitleCase": False})
    return linter
