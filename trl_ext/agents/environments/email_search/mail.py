"""What an e-mail and a question about a mailbox are."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Email:
    """`message_id` names it in question files; `date` is None where it is not known."""

    message_id: str
    date: datetime | None
    sender: str
    recipients: tuple[str, ...]
    subject: str
    body: str


@dataclass(frozen=True)
class Question:
    """A question, its answer, other ways to write it, and the message ids of the e-mails that it stands in.

    `answer` None: the mailbox does not say, and "I don't know" is right.
    """

    question: str
    answer: str | None
    aliases: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
