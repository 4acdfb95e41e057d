"""Sentiment and offensiveness by lists of words: quick and without a model, for what a word says by itself."""

import functools
import re
from typing import Any, Literal

from trl_ext.rewards.registry import register_reward

MAX_CHARACTERS = 10_000
_MAX_SENTENCE = 500  # characters: VADER's time grows with the square of the words (5 s for 5,000 emoji)
_SENTENCE_END = re.compile(r"(?<=[.!?\u2026])\s+|\n")


@register_reward("sentiment_lexicon", leans_on="vaderSentiment", extra="rewards", cost="1 ms")
class SentimentLexicon:
    """(1 + compound) / 2 by VADER, for English: 1 is positive, 0.5 neutral, 0 negative (Hutto and Gilbert, 2014).

    compound, in [-1, 1], is the sum of the valences of the words in VADER's lexicon, normalised, with rules for
    negation, degree, capitals and punctuation. It is the mean over the sentences, for which VADER is made: over a
    whole text the sum goes to the ends of the range. In [0, 1]; text without a word of the lexicon, or empty, scores
    0.5. The first 10,000 characters (`MAX_CHARACTERS`) count, and 500 are the most for a sentence: what is longer
    counts as several.

    Args:
        target_label: the sentiment that scores high, as that of `sentiment`.
    """

    def __init__(self, target_label: Literal["positive", "negative"] = "positive"):
        self.target_label = target_label

    def __call__(self, completions: list[str]) -> list[float | None]:
        sign = 1 if self.target_label == "positive" else -1
        return [0.5 * (1 + sign * self._compound(text[:MAX_CHARACTERS])) for text in completions]

    def _compound(self, text: str) -> float:
        parts = [
            sentence[start : start + _MAX_SENTENCE]
            for sentence in _SENTENCE_END.split(text)
            for start in range(0, len(sentence), _MAX_SENTENCE)
            if sentence.strip()
        ]
        compounds = [_vader().polarity_scores(part)["compound"] for part in parts]
        return sum(compounds) / len(compounds) if compounds else 0.0


@functools.cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


@register_reward("offensiveness_lexicon", leans_on="glin-profanity", extra="rewards", cost="1 ms")
class OffensivenessLexicon:
    """1 / (1 + n) for n offensive words by glin-profanity's list: 1 is inoffensive.

    Whole words and phrases count, each time they occur, whatever their case; in disguise (f.u.c.k, fück, shiiit) once.
    The list is English and knows no context: of its 416 entries most are vulgar or slurs, but some are plain words for
    sex and the body ("nude", "vagina"), which `ignore` lets pass; many insults it lacks ("idiot"). In (0, 1]; an empty
    text scores 1. The first 10,000 characters (`MAX_CHARACTERS`) count.

    Args:
        ignore: words or phrases of the list that are not offensive here.
    """

    def __init__(self, ignore: tuple[str, ...] = ()):
        self.ignore = tuple(ignore)

    def __call__(self, completions: list[str]) -> list[float | None]:
        found = _profanity(self.ignore).check_profanity
        return [1.0 / (1 + len(found(text[:MAX_CHARACTERS]).get("matches", []))) for text in completions]


@functools.lru_cache(maxsize=16)
def _profanity(ignore: tuple[str, ...]) -> Any:
    from glin_profanity import Filter

    return Filter({"languages": ["english"], "ignore_words": list(ignore)})
