"""METEOR: what a completion shares with its reference, by form, stem or meaning of words, and how scattered it is."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_ext.rewards.reference import split_words
from trl_ext.rewards.registry import register_reward
from trl_ext.rewards.similarity import best_over_references

PARTS = ("noun", "verb", "adj", "adv")
_MAX_STEMMED = 40  # characters: no English word is longer, and the cache of stems must stay small


@register_reward("meteor", leans_on="nltk", extra="rewards", cost="100 us")
class Meteor:
    """METEOR: a mean of precision and recall of the matched words, less a penalty where they are scattered.

    (1 - gamma * (chunks / m)^beta) * P * R / (alpha * P + (1 - alpha) * R) of m matched words, P = m / (words of the
    completion), R = m / (words of the reference), in chunks that are adjacent in both (Banerjee and Lavie, 2005, whose
    parameters are the defaults; alpha 0.9 is their 10PR / (R + 9P)). Words match by form, else by Porter's stem, else,
    with `wordnet`, by meaning. In [0, 1], the best over the references. By `nltk.translate.single_meteor_score`.

    Deviations: without `wordnet` no synonyms match (NLTK needs WordNet as soon as a word is unmatched). With it words
    are synonyms where a form of each is in one synset; NLTK looks for stems in WordNet, in vain where a stem is no word
    (car and automobile). The same words in the same order score 1, where NLTK gives one word 0.5 for being one chunk.
    Words are of letters and digits in any script, lower case, single characters in scripts without spaces; the first
    40,000 count. A completion without words scores 0, and 1 where a reference has none either.

    Args:
        wordnet: a folder with WordNet 3's data.noun, data.verb, data.adj and data.adv, and the *.exc files of irregular
            forms, where there are any (Debian's wordnet-base has them in /usr/share/wordnet). It is read at the first
            batch, in about 2 seconds.
        alpha: the weight of recall, from 0 to 1; beta, gamma: how the penalty grows, and the most that it is.
    """

    def __init__(self, wordnet: str | None = None, alpha: float = 0.9, beta: float = 3.0, gamma: float = 0.5):
        for name, value in (("alpha", alpha), ("gamma", gamma)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} = {value}: must be from 0 to 1")
        if not 0 <= beta < float("inf"):
            raise ValueError(f"beta = {beta}: must be 0 or more, and finite")
        missing = [part for part in PARTS if wordnet is not None and not Path(wordnet, f"data.{part}").is_file()]
        if missing:
            raise ValueError(
                f"wordnet = {wordnet!r}: must be a folder of WordNet's files, but has no data.{missing[0]}"
            )
        self.wordnet, self.alpha, self.beta, self.gamma = wordnet, alpha, beta, gamma

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        words = functools.lru_cache(maxsize=128)(lambda text: split_words(text.lower()))
        compare = self._comparison()

        def score(completion: str, reference: str) -> float:
            ours, theirs = words(completion), words(reference)
            return compare(theirs, ours) if ours != theirs else 1.0

        return [best_over_references(score, c, t) for c, t in zip(completions, target, strict=True)]

    def _comparison(self) -> Callable[[list[str], list[str]], float]:
        from nltk.translate.meteor_score import single_meteor_score

        synonyms = _synonyms(self.wordnet) if self.wordnet is not None else {}
        return functools.partial(
            single_meteor_score,
            stemmer=_stemmer(),
            wordnet=_Thesaurus(synonyms),
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
        )


class _Stemmer:
    """Porter's stemmer as NLTK's METEOR uses it, with a memory."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem: Callable[[str], str] = functools.lru_cache(maxsize=100_000)(PorterStemmer().stem)

    def stem(self, word: str) -> str:
        return self._stem(word) if len(word) <= _MAX_STEMMED else word


_stemmer = functools.cache(_Stemmer)


@dataclass(frozen=True)
class _Synset:
    """As much of NLTK's synset, and of the lemma in it, as its METEOR asks for."""

    word: str

    def lemmas(self) -> list["_Synset"]:
        return [self]

    def name(self) -> str:
        return self.word


class _Thesaurus:
    """Stands in for NLTK's WordNet, of which its METEOR asks the synonyms of a stem, to compare them with stems.

    NLTK's own reader looks for lemmas, not for stems, and opens no folder outside of NLTK's.
    """

    def __init__(self, synonyms: dict[str, tuple[str, ...]]):
        self._synonyms = synonyms

    def synsets(self, stem: str) -> list[_Synset]:
        return [_Synset(synonym) for synonym in self._synonyms.get(stem, ())]


@functools.cache
def _synonyms(folder: str) -> dict[str, tuple[str, ...]]:
    """The stems of the synonyms of each stem. Of a word its irregular forms are synonyms too."""
    stem = _stemmer().stem
    synonyms: defaultdict[str, set[str]] = defaultdict(set)
    for part in PARTS:
        irregular = defaultdict(list)
        for form, *bases in _lines(Path(folder, f"{part}.exc")):
            for base in bases:
                irregular[base].append(form)
        for _offset, _file, _type, count, *fields in _lines(Path(folder, f"data.{part}")):
            # "count word id word id ...", the count in base 16; an adjective may be followed by its position: "(a)"
            words = [word.partition("(")[0].lower() for word in fields[: 2 * int(count, 16) : 2]]
            words += [form for word in words for form in irregular.get(word, ())]
            stems = {stem(word) for word in words if "_" not in word}  # several words: they match none of a text
            for each in stems:
                synonyms[each] |= stems
    return {word: tuple(others - {word}) for word, others in synonyms.items() if len(others) > 1}


def _lines(path: Path) -> Iterator[list[str]]:
    """The fields of each line but those of the licence, which begin with spaces; nothing where there is no file."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as lines:
            yield from (line.split() for line in lines if line.strip() and not line.startswith(" "))
