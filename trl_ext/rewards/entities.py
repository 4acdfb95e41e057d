"""Whether the names and numbers of a completion are those of its source."""

import re
from typing import Any, Literal

from trl_ext.errors import RewardError
from trl_ext.rewards.registry import register_reward

_LIST_LABEL = re.compile(r"^ {0,3}[0-9]{1,9}[.)][ \t]+", re.MULTILINE)
_NUMBER_NAME_OR_STOP = re.compile(r"(?P<number>\d+(?:[.,]\d+)*)|(?P<word>[^\W\d_][\w'\u2019-]*)|(?P<stop>[.!?:\n])")


@register_reward("entity_consistency", leans_on="Python", cost="100 us")
class EntityConsistency:
    """The share of the names and numbers of the completion that the source text has too.

    The source is the prompt (of a chat: its last message) or the target; several references count as one text. Each
    name or number counts once. A heuristic without a model: a name is any word with a capital letter first, case
    and a final 's aside, but not I and not the first word of a line or after . ! ? : (so not Smith in "Dr. Smith").
    Names of several words count by word. Numbers are compared as digits without thousands commas; labels of
    numbered lists are left out. Scripts without capitals have numbers only. None where the completion has neither
    names nor numbers, or there is no source.

    Raises:
        RewardError: `source` is target and the batch has no target column.
    """

    def __init__(self, source: Literal["prompt", "target"] = "prompt"):
        self.source = source

    def __call__(
        self, completions: list[str], prompts: list[str] | None = None, target: list[Any] | None = None
    ) -> list[float | None]:
        sources: list[Any] | None = prompts if self.source == "prompt" else target
        if sources is None:
            raise RewardError(f"entity_consistency: needs the {self.source} column, the batch has none")
        return [self._score(c, _joined(source)) for c, source in zip(completions, sources, strict=True)]

    @staticmethod
    def _score(completion: str, source: str) -> float | None:
        entities = _entities(completion)
        if not entities or not source.strip():
            return None
        return len(entities & _words_and_numbers(source)) / len(entities)


def _joined(source: Any) -> str:
    parts = source if isinstance(source, list | tuple) else [source]
    return "\n".join(str(part) for part in parts if part is not None)


def _entities(text: str) -> set[str]:
    found = set()
    is_first = True
    for match in _NUMBER_NAME_OR_STOP.finditer(_LIST_LABEL.sub("", text)):
        word = match["word"]
        if match["number"] or (word and not is_first and word[0].isupper() and word.partition("'")[0] != "I"):
            found.add(_plain(match))
        is_first = match["stop"] is not None
    return found


def _words_and_numbers(text: str) -> set[str]:
    return {_plain(match) for match in _NUMBER_NAME_OR_STOP.finditer(text) if not match["stop"]}


def _plain(match: re.Match[str]) -> str:
    if match["number"]:
        return match["number"].replace(",", "")
    return match["word"].casefold().replace("\u2019", "'").removesuffix("'s").rstrip("'-")
