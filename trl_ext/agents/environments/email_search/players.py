"""Players of e-mail search: at random, by keywords, and one that knows the answer and has only to find it."""

import json
import random
import re
from collections.abc import Sequence
from typing import Any

from trl_ext.agents.players import Episode, ScriptedPlayer

_DONT_KNOW = "I don't know"
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are at be by did do does for from has have how i in is it many much must of on s that the their "
        "there they this to was were what when where which who whose why will with",
    )
)


class GoldSearcher(ScriptedPlayer):
    """Knows the answer and its source, and looks for it by what a user could know: it shows that each can be found."""

    def choose(self, episode: Episode, rng: random.Random) -> str:
        environment = episode.environment
        question, outcome = environment.question, environment.outcome
        if question.answer is None and environment.turns:
            return _end(environment, _DONT_KNOW, [])
        if not environment.turns:
            return _call("search", query=question.question)
        number = min(environment.sources, default=0)
        if outcome.read or (outcome.found and environment.task == "select"):
            return _end(environment, question.answer, [number])
        if outcome.found:
            return _call("read", number=number)
        source, _ = environment.index.read(number)
        if environment.turns == 1:
            return _call("search", query=source.subject)
        return _call("filter", sender=source.sender, after=source.day, before=source.day)


class KeywordSearcher(ScriptedPlayer):
    """Searches for the words of the question, reads the best match, and takes what looks like an answer."""

    def choose(self, episode: Episode, rng: random.Random) -> str:
        environment = episode.environment
        question = environment.question.question
        if environment.turns == 0:
            words = [word for word in re.findall(r"[\w-]+", question) if word.lower() not in _STOP_WORDS]
            return _call("search", query=" ".join(words))
        if not environment.shown:
            return _end(environment, _DONT_KNOW, [])
        best = environment.shown[0].number
        if environment.turns == 1:
            return _call("read", number=best)
        return _end(environment, _likely_answer(question, environment.text), [best])


class RandomSearcher(ScriptedPlayer):
    """A tool at random: a search for a word of the question, some e-mail read, some word as the answer."""

    def choose(self, episode: Episode, rng: random.Random) -> str:
        environment = episode.environment
        words = environment.question.question.split()
        number = rng.randint(1, environment.index.size)
        kind = rng.randrange(3)
        if kind == 0:
            return _call("search", query=rng.choice(words))
        if kind == 1:
            return _call("read", number=number)
        return _end(environment, rng.choice([_DONT_KNOW, *environment.text.split()]), [number])


_LIKELY = (
    (r"how much|total|budget|price|cost", r"(?:EUR|USD|€|\$) ?\d[\d,.]*\d"),
    (r"what time", r"\b\d{1,2}:\d\d\b"),
    (r"\bwhen\b|what day|which day", r"\b\d{1,2} [A-Z][a-z]+ \d{4}\b|\b\d{4}-\d\d-\d\d\b"),
    (r"\broom\b", r"(?<=room )\w+"),
    (r"\bcode\b", r"\b(?=\w*\d)[A-Z0-9]{5,}\b"),
    (r"\bhotel\b", r"\bHotel [A-Z]\w+"),
    (r"^who\b|^which", r"\b[A-Z]\w+ [A-Z]\w+"),
)


def _likely_answer(question: str, text: str) -> str:
    for asked, pattern in _LIKELY:
        found = re.search(pattern, text) if re.search(asked, question, re.IGNORECASE) else None
        if found:
            return found[0]
    return _DONT_KNOW


def _end(environment: Any, answer: str, sources: Sequence[int]) -> str:
    if environment.task == "select":
        return _call("select", number=sources[0] if sources else 1)
    return _call("answer", answer=answer, sources=list(sources))


def _call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})
