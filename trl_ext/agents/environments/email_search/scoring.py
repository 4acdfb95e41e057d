"""What an episode of e-mail search is worth: ART-E's reward, and that of searches by their results."""

from collections.abc import Sequence
from dataclasses import dataclass

from trl_ext.agents.environments.email_search.index import Found


@dataclass
class Outcome:
    """What has happened in an episode so far. `found`, `read`: a source was among results, was read.

    `correct` and `dont_know` are None until there is an answer.
    """

    found: bool = False
    read: bool = False
    correct: bool | None = None
    dont_know: bool | None = None
    sources_right: bool = False
    cited: int = 0


def art_e_reward(outcome: Outcome, turns: int, max_turns: int) -> float:
    """The reward of a whole episode as in ART-E (OpenPipe), from -1 to 1.5.

    Right: 1, plus 0.3 for the right source, 0.1 / sources cited, and up to 0.1 for turns not used. Otherwise there is
    partial credit, 0.1 each for a source found, read and cited: on 0 for "I don't know" or no answer, on -1 for a wrong
    one. So a wrong guess is worse than to say that one does not know. Where the mailbox does not say, "I don't know" is
    the right answer, and no source the right source.
    """
    if outcome.correct:
        return (
            1.0
            + 0.3 * outcome.sources_right
            + (0.1 / max(outcome.cited, 1) if outcome.sources_right else 0.0)
            + 0.1 * (1 - turns / max_turns)
        )
    partial = 0.1 * (outcome.found + outcome.read + outcome.sources_right)
    wrong = outcome.correct is False and not outcome.dont_know
    return partial - 1.0 * wrong


def results_reward(query: str, results: Sequence[tuple[Found, str]]) -> float:
    """The reward of a search by what it finds, from -0.1 for nothing to 1.

    min(0.1 * mean relevance of the first 5 + 0.01 * senders among the first 10, 1). Relevance is how often the words of
    the query stand in subject, body and sender.
    """
    if not results:
        return -0.1
    words = query.lower().split()
    relevance = [_occurrences(words, found, body) for found, body in results[:5]]
    senders = {found.sender for found, _ in results[:10]}
    return min(0.1 * sum(relevance) / len(relevance) + 0.01 * len(senders), 1.0)


def _occurrences(words: Sequence[str], found: Found, body: str) -> int:
    text = f"{found.subject} {body} {found.sender}".lower()
    return sum(text.count(word) for word in words)
