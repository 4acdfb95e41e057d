"""The form of a completion: its length, a pattern, a numbered list, thinking tags."""

import re
from functools import lru_cache
from typing import Any, Literal

from trl_ext.rewards.registry import register_reward
from trl_ext.rewards.text import compile_pattern

_PIECE = re.compile(r"\w+|[^\w\s]")
_LIST_ITEM = re.compile(r" {0,3}([0-9]{1,9})[.)][ \t]+(?=\S)")


def check_band(low: float | None, high: float | None, soft: float) -> None:
    """Refuse a band without a bound, upside down, or with a negative ramp.

    Raises:
        ValueError: which option, its value and what it must be.
    """
    if low is None and high is None:
        raise ValueError("min = None: must be given, or max")
    if low is not None and high is not None and high < low:
        raise ValueError(f"max = {high}: must be at least min ({low})")
    if soft < 0:
        raise ValueError(f"soft = {soft}: must be 0 or more")


def in_band(value: float, low: float | None, high: float | None, soft: float) -> float:
    """1 from `low` to `high`, falling linearly to 0 at a distance of `soft` outside it; None is no bound."""
    below = 0.0 if low is None else low - value
    above = 0.0 if high is None else value - high
    outside = max(below, above, 0.0)
    if outside == 0:
        return 1.0
    return max(0.0, 1 - outside / soft) if soft else 0.0


@register_reward("length", leans_on="transformers", cost="10 us")
class Length:
    """1 where the length is from `min` to `max` (either may be missing), else 0.

    `soft` gives a linear ramp instead: `1 - distance to the band / soft`, not below 0. Words are what whitespace
    separates; tokens are those of `tokenizer` (a folder or a name for transformers' AutoTokenizer), without special
    tokens. Without a tokenizer, tokens are words and single punctuation marks (the pattern `\\w+|[^\\w\\s]`), which are
    fewer than a model's tokens. `max_tokens` stands for `unit` tokens with that `max`.
    """

    def __init__(
        self,
        unit: Literal["words", "characters", "tokens"] = "words",
        min: int | None = None,
        max: int | None = None,
        max_tokens: int | None = None,
        soft: int = 0,
        tokenizer: str | None = None,
    ):
        if max_tokens is not None:
            if max is not None or unit == "characters":
                raise ValueError(f"max_tokens = {max_tokens}: must be left out where max or another unit is given")
            unit, max = "tokens", max_tokens
        for name, bound in (("min", min), ("max", max)):
            if bound is not None and bound < 0:
                raise ValueError(f"{name} = {bound}: must be 0 or more")
        check_band(min, max, soft)
        if tokenizer is not None and unit != "tokens":
            raise ValueError(f"tokenizer = {tokenizer!r}: must be left out where the unit is {unit}")
        self.unit, self.min, self.max, self.soft, self.tokenizer = unit, min, max, soft, tokenizer

    def __call__(self, completions: list[str]) -> list[float | None]:
        lengths = self._lengths(completions)
        scores = {length: in_band(length, self.min, self.max, self.soft) for length in set(lengths)}
        return [scores[length] for length in lengths]

    def _lengths(self, texts: list[str]) -> list[int]:
        if self.unit == "characters":
            return list(map(len, texts))
        if self.unit == "words":
            return list(map(_count_words, texts))
        if self.tokenizer is None:
            return [sum(1 for _ in _PIECE.finditer(text)) for text in texts]
        tokenizer = _load_tokenizer(self.tokenizer)
        # tokenizers refuse lone surrogates; verbose warns of texts longer than the model's context
        return [
            len(tokenizer(text.encode("utf-8", "replace").decode(), add_special_tokens=False, verbose=False).input_ids)
            for text in texts
        ]


# For each byte of ASCII a space or a letter
_SPACE_OR_LETTER = bytes(ord(" " if chr(code).isspace() else "x") for code in range(256))


def _count_words(text: str) -> int:
    """`len(text.split())`, in half the time for ASCII, as no word is made."""
    if not text.isascii():
        return len(text.split())
    letters = text.encode().translate(_SPACE_OR_LETTER)
    return letters.count(b" x") + letters.startswith(b"x")


@lru_cache(maxsize=8)
def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


@register_reward("format", leans_on="regex", extra="rewards", cost="1 us")
class Format:
    """1 where `pattern` matches the whole completion (`mode` fullmatch) or a part of it (search), else 0.

    Patterns are those of the `regex` package; a dot matches line breaks too. A match that takes more than `timeout`
    seconds scores 0.
    """

    def __init__(self, pattern: str, mode: Literal["fullmatch", "search"] = "fullmatch", timeout: float = 1.0):
        if not 0 < timeout < float("inf"):
            raise ValueError(f"timeout = {timeout}: must be greater than 0 and finite")
        compiled = compile_pattern(pattern)
        self._match = compiled.fullmatch if mode == "fullmatch" else compiled.search
        self.timeout = timeout

    def __call__(self, completions: list[str]) -> list[float | None]:
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> float:
        try:
            return float(self._match(text, timeout=self.timeout) is not None)
        except TimeoutError:
            return 0.0


@register_reward("numbered_list", leans_on="Python", cost="10 us")
class NumberedList:
    """The share of the items of a numbered list that are in order: 1., 2., 3. and so on, or 1), 2), 3).

    Score: items in order / items. Items are the lines that begin with a number, all those of the completion taken
    as one list; an item is in order if it has the number that is due next, 1 at first. 0 where fewer than
    `min_items` are in order or there are more than `max_items` items. `mode` only: 0 too where the completion has
    other lines; indented lines after the first item belong to it. Numbers indented by four spaces or more are no
    items (a list within a list).
    """

    def __init__(
        self, mode: Literal["contains", "only"] = "contains", min_items: int = 2, max_items: int | None = None
    ):
        if min_items < 1:
            raise ValueError(f"min_items = {min_items}: must be at least 1")
        if max_items is not None and max_items < min_items:
            raise ValueError(f"max_items = {max_items}: must be at least min_items ({min_items})")
        self.mode, self.min_items, self.max_items = mode, min_items, max_items

    def __call__(self, completions: list[str]) -> list[float | None]:
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> float:
        items = in_order = 0
        for line in text.split("\n"):
            item = _LIST_ITEM.match(line)
            if item:
                items += 1
                in_order += int(item.group(1)) == in_order + 1
            elif self.mode == "only" and line.strip() and not (items and line[0].isspace()):
                return 0.0
        if in_order < self.min_items or (self.max_items is not None and items > self.max_items):
            return 0.0
        return in_order / items


@register_reward("think_format", leans_on="trl", cost="10 us")
def think_format(completions: list[str]) -> list[float | None]:
    """1 for `<think>...</think>...` with one opening tag, at the start, else 0: TRL's think_format_reward."""
    from trl.rewards import think_format_reward

    return list(think_format_reward([[{"role": "assistant", "content": text}] for text in completions]))
