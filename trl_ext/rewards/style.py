"""How a completion reads: readability formulas and spelling."""

import math
import re
from functools import lru_cache
from typing import Any, Literal

from trl_ext.rewards.registry import register_reward
from trl_ext.rewards.structure import check_band, in_band

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_TOKEN = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?\u2026](?=[\s\"'\u201d\u2019)\]]|$)|[\u3002\uff01\uff1f\n]")
_VOWELS = re.compile(r"[aeiouy]+")


@register_reward("readability", leans_on="Python", cost="100 us")
class Readability:
    """1 where a readability formula gives a value from `min` to `max`, falling linearly to 0 at `soft` outside.

    Either bound may be missing. With w = words / sentences, s = syllables / words and c = words of three syllables
    or more / words:

        flesch          206.835 - 1.015 w - 84.6 s      higher is easier: 60 to 70 is plain English (Flesch 1948)
        flesch_kincaid  0.39 w + 11.8 s - 15.59         a school grade, lower is easier (Kincaid et al. 1975)
        gunning_fog     0.4 (w + 100 c)                 years of school, lower is easier (Gunning 1952)

    The formulas are for English. Words are runs of letters; a sentence ends at . ! ? and at a line break. The
    syllables of a word are its groups of vowels (y is one), less a silent final e (not -le after a consonant) or
    -ed (not -ted, -ded), at least 1. Fog counts every long word, where Gunning leaves out names, compounds and the
    endings -es, -ed, -ing. None for a text without words.
    """

    def __init__(
        self,
        metric: Literal["flesch", "flesch_kincaid", "gunning_fog"] = "flesch",
        min: float | None = None,
        max: float | None = None,
        soft: float = 0.0,
    ):
        for name, value in (("min", min), ("max", max), ("soft", soft)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} = {value}: must be finite")
        check_band(min, max, soft)
        self.metric, self.min, self.max, self.soft = metric, min, max, soft

    def __call__(self, completions: list[str]) -> list[float | None]:
        grades = [readability(text, self.metric) for text in completions]
        return [None if grade is None else in_band(grade, self.min, self.max, self.soft) for grade in grades]


def readability(text: str, metric: Literal["flesch", "flesch_kincaid", "gunning_fog"]) -> float | None:
    """The value of a formula of the reward `readability`; None for a text without words."""
    found = _WORD.findall(text)
    if not found:
        return None
    sentences = sum(_WORD.search(part) is not None for part in _SENTENCE_END.split(text))
    counts = [syllables(word) for word in found]
    words_per_sentence = len(found) / sentences
    if metric == "gunning_fog":
        return 0.4 * (words_per_sentence + 100 * sum(count >= 3 for count in counts) / len(found))
    per_word = sum(counts) / len(found)
    if metric == "flesch":
        return 206.835 - 1.015 * words_per_sentence - 84.6 * per_word
    return 0.39 * words_per_sentence + 11.8 * per_word - 15.59


def syllables(word: str) -> int:
    """The syllables of an English word, by the rule in `readability`."""
    word = word.lower()
    count = sum(1 for _ in _VOWELS.finditer(word))
    silent_e = word.endswith("e") and word[-2:-1] not in tuple("aeiouy") and not re.search(r"[^aeiouy]le$", word[-3:])
    silent_ed = word.endswith("ed") and word[-3:-2] not in tuple("aeiouytd")
    return max(1, count - (silent_e or silent_ed))


@register_reward("spelling", leans_on="pyspellchecker", extra="rewards", cost="50 us")
class Spelling:
    """The share of words that pyspellchecker's word list of `language` has, repeated words counted each time.

    Words with digits and words with a capital first (names, first words of sentences) are left out; hyphenated
    words count by part, a final 's is taken off where the list lacks it. 0 for a text without words, None where all
    are left out.
    """

    def __init__(
        self, language: Literal["ar", "de", "en", "es", "eu", "fa", "fr", "it", "lv", "nl", "pt", "ru"] = "en"
    ):
        self.language = language

    def __call__(self, completions: list[str]) -> list[float | None]:
        known = _word_list(self.language)
        return [self._score(text, known) for text in completions]

    @staticmethod
    def _score(text: str, known: Any) -> float | None:
        found = _TOKEN.findall(text)
        if not found:
            return 0.0
        checked = [word.replace("\u2019", "'") for word in found if _WORD.fullmatch(word) and not word[0].isupper()]
        if not checked:
            return None
        right = sum(word.lower() in known or word.lower().removesuffix("'s") in known for word in checked)
        return right / len(checked)


@lru_cache(maxsize=4)
def _word_list(language: str) -> Any:
    from spellchecker import SpellChecker

    return SpellChecker(language, distance=1).word_frequency.dictionary
