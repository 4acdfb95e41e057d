"""What the model reads first: how to call the tools, and, if it is to see one, a search that was solved."""

import json
from typing import Any, Literal

from trl_ext.agents.environment import Messages, Observation

Task = Literal["answer", "select"]

_RULES = """You answer a question from a mailbox. Each turn, reply with one tool call as JSON, nothing else:
{search}: the e-mails that match these words best
{filter}: narrows the last search; what is empty is not looked at
{read}: a whole e-mail
{end}
You have {turns} turns.

"""
_ENDS = {
    "answer": "{answer}: ends the search. The sources are the numbers of the e-mails that say so. If the mailbox does "
    "not say, answer: I don't know",
    "select": "{select}: ends the search with the e-mail that the answer is in",
}
_CALLS: dict[str, dict[str, Any]] = {
    "search": {"query": "words"},
    "filter": {"sender": "", "recipient": "", "subject": "", "after": "2024-01-31", "before": ""},
    "read": {"number": 12},
    "answer": {"answer": "a few words", "sources": [12]},
    "select": {"number": 12},
}
_SAYS_SO = "The picnic is on 9 May 2024."
_SOLVED: list[tuple[str, dict[str, Any], str]] = [  # what the mailbox says, after each call
    ("search", {"query": "picnic day"}, f"[12] 2024-05-02 Ann <ann@example.org>: Picnic | {_SAYS_SO}"),
    (
        "read",
        {"number": 12},
        "From: Ann <ann@example.org>\nTo: Bob <bob@example.org>\nDate: 2024-05-02 10:00\nSubject: Picnic\n\n"
        f"{_SAYS_SO} Ann",
    ),
]
_ENDED: dict[str, dict[str, Any]] = {"answer": {"answer": "9 May 2024", "sources": [12]}, "select": {"number": 12}}


def opening(question: str, task: Task, turns: int, explain: bool, example: bool) -> Observation:
    """The first observation: text, or, with an example, messages in which another question has been answered."""
    calls = {name: _call(name, arguments) for name, arguments in _CALLS.items()}
    rules = _RULES.format(**calls, end=_ENDS[task].format(**calls), turns=turns) if explain else ""
    if not example:
        return f"{rules}Question: {question}"
    said: Messages = [{"role": "user", "content": f"{rules}Question: Which day is the picnic?"}]
    for name, arguments, observation in [*_SOLVED, (task, _ENDED[task], f"Thank you.\n\nQuestion: {question}")]:
        said.append({"role": "assistant", "content": _call(name, arguments)})
        said.append({"role": "user", "content": observation})
    return said


def _call(name: str, arguments: dict[str, Any]) -> str:
    return json.dumps({"name": name, "arguments": arguments})
