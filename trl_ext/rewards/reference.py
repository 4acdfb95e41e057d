"""How well a completion says what its reference says: BLEU, chrF, ROUGE and the translation edit rate.

Only the first `MAX_CHARACTERS` characters of a text are scored. ROUGE and the edit rate score the first `MAX_WORDS`
words of these, as their time grows with the product of the lengths.
A completion without words scores 0, and 1 where a reference has none either.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from trl_ext.rewards.registry import register_reward
from trl_ext.rewards.similarity import best_over_references

MAX_CHARACTERS = 200_000
MAX_WORDS = 40_000
MAX_SHIFT_WORDS = 50
_MAX_STEMMED = 40  # characters: no English word is longer, and the cache of stems must stay small

_ASCII_WORD = re.compile(r"[A-Za-z0-9]+")  # what _patterns() finds in such text, in a quarter of the time

# Written without spaces between words: a character stands for a word, as in sacrebleu's `zh` tokenizer.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"


def _references(target: Any) -> list[str]:
    """The references of one completion, cut to `MAX_CHARACTERS`."""
    references = target if isinstance(target, list | tuple) else [target]
    return [str(reference)[:MAX_CHARACTERS] for reference in references if reference is not None]


def _sacrebleu_score(metric: Any, completion: str, target: Any) -> float | None:
    """A sacrebleu metric's score against all references at once, in [0, 1]; None where there is no reference."""
    references = _references(target)
    completion = completion[:MAX_CHARACTERS]
    if not references:
        return None
    if not completion.strip():
        return float(any(not reference.strip() for reference in references))
    score = float(metric.sentence_score(completion, references).score) / 100
    return min(1.0, score)  # sacrebleu's best is 100.00000000000004


def _forget_texts(tokenizer: Any) -> None:
    """Empty sacrebleu's caches, which keep 65,536 texts of any length for good: gigabytes in a training run."""
    for part in (tokenizer, getattr(tokenizer, "_post_tokenizer", None)):
        getattr(type(part).__call__, "cache_clear", lambda: None)()


@register_reward("bleu", leans_on="sacrebleu", extra="rewards", cost="1 ms")
class Bleu:
    """Sentence BLEU: brevity penalty times the geometric mean of the 1- to 4-gram precisions (Papineni et al., 2002).

    In [0, 1]: `sacrebleu.BLEU(effective_order=True).sentence_score / 100`. Effective order leaves out the n-grams that
    a text is too short for: without it any text of fewer than 4 words scores 0. All references count at once.

    Args:
        smooth_method: what n-grams of an order without a match count as (Chen and Cherry, WMT 2014); with `none` the
            score is then 0.
        lowercase: ignore case.
        tokenize: sacrebleu's tokenizer: `13a` (mteval's), `intl` (Unicode punctuation), `zh`, or `char` for scripts
            without spaces between words, whose sentences are one word to `13a`.
    """

    def __init__(
        self,
        smooth_method: Literal["exp", "floor", "add-k", "none"] = "exp",
        lowercase: bool = True,
        tokenize: Literal["13a", "intl", "zh", "char"] = "13a",
    ):
        self.smooth_method, self.lowercase, self.tokenize = smooth_method, lowercase, tokenize

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        from sacrebleu.metrics.bleu import BLEU

        metric = BLEU(
            effective_order=True, smooth_method=self.smooth_method, lowercase=self.lowercase, tokenize=self.tokenize
        )
        scores = [_sacrebleu_score(metric, c, t) for c, t in zip(completions, target, strict=True)]
        _forget_texts(metric.tokenizer)
        return scores


@register_reward("chrf", leans_on="sacrebleu", extra="rewards", cost="1 ms")
class Chrf:
    """chrF2: F-score, recall weighing twice, of the character 1- to 6-grams, whitespace aside (Popović, WMT 2015).

    In [0, 1]: `sacrebleu.CHRF().sentence_score / 100`, the best over the references. Works on any script.

    Args:
        word_order: 2 adds word 1- and 2-grams: chrF++ (Popović, WMT 2017).
        lowercase: ignore case.
    """

    def __init__(self, word_order: Literal[0, 2] = 0, lowercase: bool = False):
        self.word_order, self.lowercase = word_order, lowercase

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        from sacrebleu.metrics.chrf import CHRF

        metric = CHRF(word_order=self.word_order, lowercase=self.lowercase)
        return [_sacrebleu_score(metric, c, t) for c, t in zip(completions, target, strict=True)]


@functools.cache
def _patterns() -> tuple[Any, Any]:
    """What ROUGE takes for a word, and a character of a script without spaces."""
    import regex  # the standard library's \w ends a Hindi word at each vowel sign and knows no scripts

    word = rf"{_UNSPACED}\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--{_UNSPACED}]+"
    return regex.compile(word, regex.V1), regex.compile(_UNSPACED, regex.V1)


def split_words(text: str) -> list[str]:
    """The words of letters and digits, single characters in scripts without spaces: the first `MAX_WORDS`."""
    text = text[:MAX_CHARACTERS]
    found: list[str] = (_ASCII_WORD if text.isascii() else _patterns()[0]).findall(text)
    return found[:MAX_WORDS]


@functools.cache
def _porter() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


@functools.lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    """Porter's stem of an English word, as rouge_score takes it: words of up to 3 letters stay."""
    if not 3 < len(word) <= _MAX_STEMMED or not word.isascii():
        return word
    return str(_porter().stem(word, to_lowercase=False))


class _Rouge:
    """F1 of the n-grams of `order` words, or of the longest common subsequence where `order` is None."""

    order: int | None = None

    def __init__(self, use_stemmer: bool = True, lowercase: bool = True):
        self.use_stemmer, self.lowercase = use_stemmer, lowercase

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        # The completions of a prompt share its reference. Bounded, as words take ten times the memory of their text.
        words = functools.lru_cache(maxsize=128)(self._words)

        def score(completion: str, reference: str) -> float:
            return self._score(words(completion), words(reference))

        return [best_over_references(score, c, t) for c, t in zip(completions, target, strict=True)]

    def _words(self, text: str) -> list[str]:
        found = split_words(text.lower() if self.lowercase else text)
        return list(map(_stem, found)) if self.use_stemmer else found

    def _score(self, ours: list[str], theirs: list[str]) -> float:
        total = self._size(ours) + self._size(theirs)
        return 2 * self._shared(ours, theirs) / total if total else float(ours == theirs)

    def _size(self, words: list[str]) -> int:
        return max(0, len(words) - (self.order or 1) + 1)

    def _shared(self, ours: list[str], theirs: list[str]) -> int:
        if self.order is None:
            from rapidfuzz.distance import LCSseq

            return int(LCSseq.similarity(ours, theirs))
        return (self._ngrams(ours) & self._ngrams(theirs)).total()

    def _ngrams(self, words: list[str]) -> Counter[tuple[str, ...]]:
        return Counter(zip(*(words[i:] for i in range(self.order or 1)), strict=False))


@register_reward("rouge_l", leans_on="rapidfuzz, nltk", extra="rewards", cost="100 us")
class RougeL(_Rouge):
    """ROUGE-L: F1 of the longest common subsequence of words (Lin, 2004), 2 * LCS / (words of both texts).

    In [0, 1], the best over the references; on ASCII text equal to rouge_score's f-measure. Deviations: words are of
    letters and digits in any script (rouge_score drops all but a-z and 0-9), single characters in scripts without
    spaces; only ASCII words of at most 40 letters are stemmed; two texts too short for the measure (for ROUGE-2, of one
    word) score 1 where their words are the same, not 0.

    Args:
        use_stemmer: compare Porter's stems of words longer than 3 letters.
        lowercase: ignore case.
    """


@register_reward("rouge_1", leans_on="nltk", extra="rewards", cost="100 us")
class Rouge1(_Rouge):
    """ROUGE-1: F1 of the words in common, with their counts (Lin, 2004). Options, range and deviations as `rouge_l`."""

    order = 1


@register_reward("rouge_2", leans_on="nltk", extra="rewards", cost="100 us")
class Rouge2(_Rouge):
    """ROUGE-2: F1 of the pairs of adjacent words in common (Lin, 2004). Options, range and deviations as `rouge_l`."""

    order = 2


@register_reward("ter", leans_on="rapidfuzz, sacrebleu", extra="rewards", cost="10 us")
class Ter:
    """1 - min(1, edits / words of the reference): the translation edit rate (Snover et al., 2006) as a reward.

    In [0, 1], the best over the references (sacrebleu divides by their mean length). An edit inserts, deletes or
    replaces a word: what whitespace separates, punctuation included, or one character in scripts without spaces.

    Args:
        shifts: moving a run of words is one edit too, by sacrebleu's TER, at a millisecond to a second a pair. Where
            one of the texts has more than 50 words (`MAX_SHIFT_WORDS`) shifts are left out: they would take seconds.
        lowercase: ignore case, as TER does.
    """

    def __init__(self, shifts: bool = False, lowercase: bool = True):
        self.shifts, self.lowercase = shifts, lowercase

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        words = functools.lru_cache(maxsize=128)(self._words)
        shifted = self._shifted() if self.shifts else None

        def score(completion: str, reference: str) -> float:
            ours, theirs = words(completion), words(reference)
            if not ours or not theirs:
                return float(ours == theirs)
            if shifted is not None and max(len(ours), len(theirs)) <= MAX_SHIFT_WORDS:
                return shifted(ours, theirs)
            return _edit_reward(ours, theirs)

        return [best_over_references(score, c, t) for c, t in zip(completions, target, strict=True)]

    def _words(self, text: str) -> list[str]:
        text = text[:MAX_CHARACTERS]
        text = text.lower() if self.lowercase else text
        return (text if text.isascii() else _patterns()[1].sub(r" \g<0> ", text)).split()[:MAX_WORDS]

    def _shifted(self) -> Callable[[list[str], list[str]], float]:
        from sacrebleu.metrics.ter import TER

        metric = TER(case_sensitive=not self.lowercase)

        def score(ours: list[str], theirs: list[str]) -> float:
            rate = float(metric.sentence_score(" ".join(ours), [" ".join(theirs)]).score) / 100
            _forget_texts(metric.tokenizer)
            return max(0.0, 1.0 - rate)

        return score


def _edit_reward(ours: list[str], theirs: list[str]) -> float:
    from rapidfuzz.distance import Levenshtein

    # Past the cutoff the reward is 0 however many edits there are, and rapidfuzz stops early.
    return 1.0 - min(1.0, Levenshtein.distance(ours, theirs, score_cutoff=len(theirs)) / len(theirs))
