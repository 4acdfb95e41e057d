"""Whether an answer is the right one, by its words and numbers."""

import re
import unicodedata
from collections.abc import Iterable

_IDK = (
    "i don't know", "i do not know", "don't know", "do not know", "i dont know", "dont know", "unknown", "not known",
    "no answer", "not found", "cannot be found", "not in the mailbox", "the mailbox does not say", "none", "",
)  # fmt: skip


def says_dont_know(answer: str) -> bool:
    """Whether the whole answer is one of the usual ways to say that one does not know."""
    return _plain(answer) in _DONT_KNOW


def same_answer(given: str, right: str, aliases: Iterable[str] = ()) -> bool:
    """Whether two answers differ at most in capitals, accents, punctuation, articles and how amounts are written."""
    return _plain(given) in {_plain(right), *map(_plain, aliases)} - {""}


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKD", text.casefold())
    text = "".join(character for character in text if not unicodedata.combining(character))
    text = re.sub(r"['\N{RIGHT SINGLE QUOTATION MARK}]", "", text)
    text = re.sub(r"(?<=\d)[, ](?=\d{3}(?!\d))", "", text)  # 1,250 and 1 250
    text = re.sub(r"(?<![\d.])(\d+)(?:\.0+|(\.\d*?)0+)(?!\.?\d)", r"\1\2", text)  # 1250.00 and 12.50
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", text)
    words = (_CURRENCIES.get(word, word) for word in re.findall(r"\d+(?:[.:]\d+)+|\w+|[€$£]", text))
    text = " ".join(word for word in words if word not in ("a", "an", "the"))
    return re.sub(rf"\b({'|'.join(set(_CURRENCIES.values()))}) (\d[\d.]*)", r"\2 \1", text)  # the amount first


_CURRENCIES = {"€": "eur", "euro": "eur", "euros": "eur", "$": "usd", "dollar": "usd", "dollars": "usd", "£": "gbp"}
_DONT_KNOW = frozenset(map(_plain, _IDK))
