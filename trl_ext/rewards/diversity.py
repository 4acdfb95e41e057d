"""How much completions repeat themselves, each other, or a corpus, by n-grams of words.

Words are lower-case runs of letters and digits: a script that puts no spaces between words has few and long ones.
"""

from collections import Counter, deque
from pathlib import Path

from trl_ext.rewards.registry import register_reward
from trl_ext.rewards.similarity import words


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The n-grams of the words of a text, in order. A text with fewer words is one n-gram; without words: []."""
    tokens = words(text)
    if len(tokens) < n:
        return [tuple(tokens)] if tokens else []
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def prompt_groups(prompts: list[str]) -> list[list[int]]:
    """The rows of each prompt that has several completions."""
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def _check_n(n: int) -> None:
    if not 1 <= n <= 10:  # the memory of a long text grows with n
        raise ValueError(f"n = {n}: must be from 1 to 10")


@register_reward("diversity", leans_on="Python", cost="10 us", per_completion=False)
class Diversity:
    """The share of a completion's distinct n-grams that no other completion to the same prompt has.

    After distinct-n (Li et al., arXiv 1510.03055), which counts the distinct n-grams of a whole set and so gives
    all its texts one score. A completion shorter than n words is one n-gram; one without words scores 0. None where
    the batch has no other completion to the prompt. Of a chat prompt the last message is compared. A process sees
    its own batch: where the completions to a prompt are spread over processes, each part is a group.
    """

    def __init__(self, n: int = 2):
        _check_n(n)
        self.n = n

    def __call__(self, completions: list[str], prompts: list[str]) -> list[float | None]:
        scores: list[float | None] = [None] * len(completions)
        for rows in prompt_groups(prompts):
            distinct = [set(ngrams(completions[row], self.n)) for row in rows]
            owners = Counter(gram for grams in distinct for gram in grams)
            for row, grams in zip(rows, distinct, strict=True):
                scores[row] = sum(owners[gram] == 1 for gram in grams) / len(grams) if grams else 0.0
        return scores


@register_reward("repetition", leans_on="Python", cost="10 us")
class Repetition:
    """Distinct n-grams / n-grams of the completion: 1 where none is repeated.

    This is 1 - seq-rep-n of Welleck et al. (arXiv 1908.04319). A completion shorter than n words is one n-gram and
    scores 1; one without words scores 0.
    """

    def __init__(self, n: int = 3):
        _check_n(n)
        self.n = n

    def __call__(self, completions: list[str]) -> list[float | None]:
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> float:
        grams = ngrams(text, self.n)
        return len(set(grams)) / len(grams) if grams else 0.0


@register_reward("novelty", leans_on="Python", cost="10 us")
class Novelty:
    """The share of the completion's distinct n-grams that the text file `corpus` (UTF-8) does not have.

    A completion shorter than n words scores 0: it has nothing to compare. The corpus is read when the first batch is
    scored and kept as one 64-bit hash per n-gram, about 70 bytes each.
    """

    def __init__(self, corpus: str, n: int = 3):
        _check_n(n)
        if not Path(corpus).is_file():
            raise ValueError(f"corpus = {corpus!r}: must be a text file")
        self.corpus, self.n = corpus, n
        self._known: set[int] | None = None

    def __call__(self, completions: list[str]) -> list[float | None]:
        if self._known is None:
            self._known = self._read()
        return [self._score(text, self._known) for text in completions]

    def _score(self, text: str, known: set[int]) -> float:
        grams = {gram for gram in ngrams(text, self.n) if len(gram) == self.n}
        return sum(hash(gram) not in known for gram in grams) / len(grams) if grams else 0.0

    def _read(self) -> set[int]:
        known = set()
        window: deque[str] = deque(maxlen=self.n)
        with open(self.corpus, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                for word in words(line):
                    window.append(word)
                    if len(window) == self.n:
                        known.add(hash(tuple(window)))
        return known
