"""Find the answer to a question in a mailbox: search, filter, read, then answer, or select the e-mail."""

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from trl_ext.agents.actions import ActionParser, ToolCallParser
from trl_ext.agents.environment import Environment, Observation, Step, as_text
from trl_ext.agents.environments.email_search.answers import same_answer, says_dont_know
from trl_ext.agents.environments.email_search.index import Filter, Found, MailIndex
from trl_ext.agents.environments.email_search.mail import Question
from trl_ext.agents.environments.email_search.players import GoldSearcher, KeywordSearcher, RandomSearcher
from trl_ext.agents.environments.email_search.prompt import Task, opening
from trl_ext.agents.environments.email_search.questions import Split, load_mailbox, part
from trl_ext.agents.environments.email_search.scoring import Outcome, art_e_reward, results_reward
from trl_ext.agents.players import PlayerFactory
from trl_ext.errors import ActionError, ConfigError, EnvironmentStepError

Reward = Literal["art_e", "results"]
Judge = Callable[[str, str, str], bool | None]


class EmailSearch(Environment):
    """Questions about a mailbox, the user's own or a synthetic one.

    Success is the right answer, which for some questions is "I don't know"; with `task="select"`, the right e-mail.

    Args:
        mailbox: an index, or an .mbox, .jsonl or .csv file; default: the synthetic mailbox of `emails` e-mails.
        questions: questions, or a .jsonl or .csv file of them; needed with a mailbox of one's own.
        split: "train" is four fifths of the questions, "test" the others.
        task: how an episode ends, with an answer or with an e-mail. "select" leaves out questions without an answer.
        reward: "art_e", see `art_e_reward`; its credit for finding and reading a source is paid at once. "results": a
            search or filter is paid for its results, see `results_reward`, but only for being better than the ones
            before it, or else it would pay to search on; the end pays 1 if right, -1 if wrong, 0 for "I don't know".
        judge: `judge(question, right answer, answer) -> bool` in place of comparing words and numbers.
        results: e-mails shown per search.
        max_turns: the episode is truncated after so many turns.
        explain: the first observation says how to call the tools. Not needed where a chat template shows them.
        example: it shows a question that was answered, too, by a call a turn. For a small model, which may make no call
            at all without.

    Raises:
        ConfigError, DatasetError: an option or a file is wrong.
    """

    players: ClassVar[Mapping[str, PlayerFactory]] = {
        "random": RandomSearcher,
        "scripted": GoldSearcher,
        "keywords": KeywordSearcher,
    }

    def __init__(
        self,
        mailbox: MailIndex | str | Path | None = None,
        questions: Sequence[Question] | str | Path | None = None,
        split: Split = "all",
        task: Task = "answer",
        reward: Reward = "art_e",
        judge: Judge | None = None,
        results: int = 10,
        max_turns: int = 10,
        emails: int = 3000,
        seed: int = 0,
        explain: bool = True,
        example: bool = False,
        parser: ActionParser | None = None,
    ) -> None:
        for name, value, allowed in (("split", split, Split), ("task", task, Task), ("reward", reward, Reward)):
            if value not in get_args(allowed):
                raise ConfigError(f"{name} = {value!r}: must be one of {', '.join(get_args(allowed))}")
        for name, number in (("results", results), ("max_turns", max_turns)):
            if number < 1:
                raise ConfigError(f"{name} = {number}: must be at least 1")
        self.index, asked = load_mailbox(mailbox, questions, emails, seed)
        self.questions = [question for question in part(asked, split) if task == "answer" or question.answer]
        if not self.questions:
            raise ConfigError(f"there are no questions for split = {split!r} and task = {task!r}")
        self.task, self.reward, self.judge, self.results = task, reward, judge, results
        self.explain, self.example = explain, example
        self.max_turns = self._max_turns = max_turns
        self._tools = {tool.__name__: tool for tool in self.tools}
        self.parser = parser or ToolCallParser(self._tools, invalid_penalty=0.1)

    def rows(self, episodes: int, seed: int = 0) -> list[dict[str, Any]]:
        """So many questions in an order that the seed gives; when all are asked, they begin anew."""
        order = random.Random(seed).sample(self.questions, len(self.questions))
        asked = (order[episode % len(order)] for episode in range(episodes))
        return [{**vars(one), "aliases": list(one.aliases), "sources": list(one.sources)} for one in asked]

    def reset(self, **row: Any) -> Observation:
        """Ask the row's `question` (with `answer`, `aliases`, `sources`), or one that its `seed` picks."""
        if row.get("question"):
            aliases, sources = (tuple(row.get(name) or ()) for name in ("aliases", "sources"))
            self.question = Question(row["question"], row.get("answer") or None, aliases, sources)
        else:
            self.question = random.Random(row.get("seed")).choice(self.questions)
        self.sources = frozenset(self.index.numbers(self.question.sources))
        self.turns, self.outcome = 0, Outcome()
        self.shown: list[Found] = []  # what the last search or filter found
        self.text = ""  # what was read last
        self._query, self._searched, self._paid = "", False, 0.0
        return opening(self.question.question, self.task, self._max_turns, self.explain, self.example)

    def step(self, action: Any) -> Step:
        """Take a tool call, `{"name": ..., "arguments": {...}}`."""
        try:
            name, arguments = action["name"], dict(action["arguments"])
        except (KeyError, TypeError, ValueError):
            raise ActionError('Reply with one tool call: {"name": ..., "arguments": {...}}.') from None
        if name not in self._tools:
            raise ActionError(f"There is no tool {name!r}; the tools are: {', '.join(self._tools)}.")
        try:
            bound = inspect.signature(self._tools[name]).bind(**arguments)
        except TypeError as error:
            raise ActionError(f"{name}: {error}.") from None
        bound.apply_defaults()
        text = getattr(self, f"_{name}")(**bound.arguments)
        self.turns += 1
        outcome, over = self.outcome, self.outcome.correct is not None
        info = {"success": self.success, **vars(outcome)}
        return Step(text, self._earned(over), over, not over and self.out_of_turns, info)

    @property
    def success(self) -> bool:
        return bool(self.outcome.correct)

    def search(self, query: str) -> str:
        """
        Find the e-mails that match some words best.

        Args:
            query: The words to look for. Those of subject, text, sender and recipients count.

        Returns:
            The e-mails found, each with its number, and the place that matches.
        """
        return self._call("search", query=query)

    def filter(
        self, sender: str = "", recipient: str = "", subject: str = "", after: str = "", before: str = ""
    ) -> str:
        """
        Narrow the results of the last search. What is empty is not looked at.

        Args:
            sender: A part of the sender's name or address.
            recipient: A part of a recipient's name or address.
            subject: A part of the subject.
            after: The first day, such as 2024-01-31.
            before: The last day, such as 2024-12-31.

        Returns:
            The e-mails that are left, each with its number.
        """
        return self._call("filter", sender=sender, recipient=recipient, subject=subject, after=after, before=before)

    def read(self, number: int) -> str:
        """
        Read a whole e-mail.

        Args:
            number: The number of the e-mail.

        Returns:
            The e-mail.
        """
        return self._call("read", number=number)

    def answer(self, answer: str, sources: list[int]) -> str:
        """
        Give the answer to the question, which ends the search.

        Args:
            answer: The answer in a few words, or: I don't know
            sources: The numbers of the e-mails that say so.

        Returns:
            A confirmation.
        """
        return self._call("answer", answer=answer, sources=sources)

    def select(self, number: int) -> str:
        """
        Select the e-mail that the answer to the question is in, which ends the search.

        Args:
            number: The number of the e-mail.

        Returns:
            A confirmation.
        """
        return self._call("select", number=number)

    @property
    def tools(self) -> list[Callable[..., Any]]:
        return [self.search, self.filter, self.read, self.answer if self.task == "answer" else self.select]

    def _call(self, name: str, **arguments: Any) -> str:
        return as_text(self.step({"name": name, "arguments": arguments})[0])

    def _search(self, query: Any) -> str:
        self._query = str(query)
        self.shown, complete = self.index.search(self._query, limit=self.results)
        return self._show("" if complete else "No e-mail has all of these words. With some of them:\n")

    def _filter(self, after: Any, before: Any, **parts: Any) -> str:
        texts = {name: str(part or "") for name, part in parts.items()}
        kept = Filter(texts["sender"], texts["recipient"], texts["subject"], _day(after), _day(before))
        self.shown, _ = self.index.search(self._query, kept, self.results)
        return self._show("")

    def _show(self, heading: str) -> str:
        self._searched = True
        self.outcome.found |= any(found.number in self.sources for found in self.shown)
        if not self.shown:
            return "No e-mail found."
        return heading + "\n".join(map(_line, self.shown))

    def _read(self, number: Any) -> str:
        found, self.text = self._email(number)
        self.outcome.read |= found.number in self.sources
        body = self.text if len(self.text) <= _LONGEST else self.text[:_LONGEST] + " [cut]"
        return (
            f"From: {found.sender}\nTo: {found.recipients}\nDate: {found.day} {found.clock}\n"
            f"Subject: {found.subject}\n\n{body}"
        )

    def _answer(self, answer: Any, sources: Any) -> str:
        cited = {_number(source) for source in (sources if isinstance(sources, list) else [sources])}
        given, question = str(answer), self.question
        outcome = self.outcome
        outcome.dont_know = says_dont_know(given)
        if outcome.dont_know or question.answer is None:
            outcome.correct = outcome.dont_know and question.answer is None
        elif self.judge is None:
            outcome.correct = same_answer(given, question.answer, question.aliases)
        else:
            outcome.correct = self.judge(question.question, question.answer, given)
            if outcome.correct is None:
                raise EnvironmentStepError(f"the judge gave no verdict on the answer {given[:80]!r}")
        outcome.sources_right = bool(self.sources & cited) if question.answer else not cited
        outcome.cited = len(cited)
        return "Thank you."

    def _select(self, number: Any) -> str:
        found, _ = self._email(number)
        self.outcome.correct = self.outcome.sources_right = found.number in self.sources
        self.outcome.cited, self.outcome.dont_know = 1, False
        return "Thank you."

    def _email(self, number: Any) -> tuple[Found, str]:
        email = self.index.read(_number(number))
        if email is None:
            raise ActionError(f"There is no e-mail {_number(number)}; they are numbered from 1 to {self.index.size}.")
        return email

    def _earned(self, over: bool) -> float:
        """The reward of this turn."""
        if self.reward == "art_e":  # what is due so far, less what has been paid
            due = art_e_reward(self.outcome, self.turns, self._max_turns)
            earned, self._paid = due - self._paid, due
            return earned
        if over:
            return 1.0 if self.outcome.correct else 0.0 if self.outcome.dont_know else -1.0
        if not self._searched:
            return 0.0
        self._searched = False
        worth = results_reward(self._query, [(found, self._email(found.number)[1]) for found in self.shown])
        gain, self._paid = max(worth - self._paid, 0.0), max(worth, self._paid)
        return min(worth, gain)


_LONGEST = 4000  # characters of an e-mail that are shown


def _line(found: Found) -> str:
    excerpt = " ".join(found.excerpt.split())
    return f"[{found.number}] {found.day} {found.sender}: {found.subject} | {excerpt}"


def _number(value: Any) -> int:
    """An e-mail's number, also where a model writes it as text."""
    text = str(value).strip("[]# ")
    if isinstance(value, bool) or not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ActionError(f"{str(value)[:40]!r} is not the number of an e-mail.")
    return int(text)


def _day(value: Any) -> date | None:
    if not value:
        return None
    try:
        return date.fromisoformat(str(value).strip())
    except ValueError:
        raise ActionError(f"{str(value)[:40]!r} is not a day: write it as 2024-01-31.") from None
