"""How close a completion is to its reference, by characters and by words."""

import operator
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from trl_ext.rewards.cores import own_cores
from trl_ext.rewards.registry import register_reward

MAX_CHARACTERS = 20_000
_THREADS = own_cores(most=4)
_WORTH_A_THREAD = 10**9  # pairs of characters, about 20 ms
WORD = re.compile(r"\w+")
_ARTICLE_OR_PUNCTUATION = re.compile(r"\b(a|an|the)\b|[^\w\s]")


def best_over_references(score: Callable[[str, str], float], completion: str, target: Any) -> float | None:
    """The best score over the references of one completion; None where there is no reference."""
    references = target if isinstance(target, (list, tuple)) else (target,)
    known = [str(reference) for reference in references if reference is not None]
    return max(score(completion, reference) for reference in known) if known else None


def words(text: str) -> list[str]:
    """Lower-case words of letters and digits in any script, without punctuation."""
    return WORD.findall(text.lower())


@register_reward("exact_match", leans_on="Python", cost="< 1 us")
class ExactMatch:
    """1 where the completion is the reference, surrounding whitespace aside, else 0.

    `normalize` also takes out case, punctuation, the articles a, an, the and repeated whitespace, as SQuAD's metric
    does (Rajpurkar et al., arXiv 1606.05250).
    """

    def __init__(self, normalize: bool = False):
        self.normalize = normalize

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        return [best_over_references(self._score, c, t) for c, t in zip(completions, target, strict=True)]

    def _score(self, completion: str, reference: str) -> float:
        return float(self._plain(completion) == self._plain(reference))

    def _plain(self, text: str) -> str:
        if self.normalize:
            text = " ".join(_ARTICLE_OR_PUNCTUATION.sub(" ", text.lower()).split())
        return text.strip()


@register_reward("jaccard", leans_on="Python", cost="10 us")
def jaccard(completions: list[str], target: list[Any]) -> list[float | None]:
    """Shared distinct words over all distinct words of the two texts. Two texts without words are the same: 1."""

    def score(completion: str, reference: str) -> float:
        ours, theirs = set(words(completion)), set(words(reference))
        return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0

    return [best_over_references(score, c, t) for c, t in zip(completions, target, strict=True)]


@register_reward("token_f1", leans_on="Python", cost="10 us")
def token_f1(completions: list[str], target: list[Any]) -> list[float | None]:
    """F1 of the words in common, with their counts, as SQuAD's metric (arXiv 1606.05250). Two empty texts give 1."""

    def score(completion: str, reference: str) -> float:
        ours, theirs = Counter(words(completion)), Counter(words(reference))
        if not ours or not theirs:
            return float(ours == theirs)
        return 2 * (ours & theirs).total() / (ours.total() + theirs.total())

    return [best_over_references(score, c, t) for c, t in zip(completions, target, strict=True)]


@register_reward("levenshtein", leans_on="rapidfuzz", extra="rewards", cost="1 us")
class Levenshtein:
    """1 - edit distance / length of the longer text, in characters. Two empty texts give 1.

    The first 20,000 characters (`MAX_CHARACTERS`) of each text count: the time grows with the product of the lengths.
    """

    def __init__(self, lowercase: bool = False):
        self.lowercase = lowercase

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        import numpy as np
        from rapidfuzz.distance import Levenshtein as distance
        from rapidfuzz.process import cpdist

        ours, theirs, rows = [], [], []
        for row, (completion, references) in enumerate(zip(completions, target, strict=True)):
            for reference in references if isinstance(references, (list, tuple)) else (references,):
                if reference is not None:
                    ours.append(completion[:MAX_CHARACTERS])
                    theirs.append(str(reference)[:MAX_CHARACTERS])
                    rows.append(row)
        if self.lowercase:
            ours, theirs = ([text.lower() for text in texts] for texts in (ours, theirs))
        pairs = sum(map(operator.mul, map(len, ours), map(len, theirs)))
        threads = _THREADS if pairs > _WORTH_A_THREAD else 1
        similarities = cpdist(
            ours, theirs, scorer=distance.normalized_similarity, dtype=np.float64, workers=threads
        ).tolist()
        scores: list[float | None] = [None] * len(completions)
        for row, similarity in zip(rows, similarities, strict=True):
            scores[row] = max(scores[row] or 0.0, similarity)
        return scores
