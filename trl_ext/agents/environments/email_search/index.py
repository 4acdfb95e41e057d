"""A mailbox that is searched: SQLite's full-text index, opened read-only, from any number of threads."""

import os
import queue
import re
import sqlite3
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from trl_ext.agents.environments.email_search.mail import Email
from trl_ext.errors import DatasetError

_SCHEMA = """
CREATE TABLE email (
    number INTEGER PRIMARY KEY, message_id TEXT, day TEXT, clock TEXT,
    sender TEXT, recipients TEXT, subject TEXT, body TEXT,
    sender_folded TEXT, recipients_folded TEXT, subject_folded TEXT
);
CREATE INDEX email_message_id ON email (message_id);
CREATE VIRTUAL TABLE words USING fts5 (
    subject, body, sender, recipients, content='email', content_rowid='number',
    tokenize='porter unicode61 remove_diacritics 2'
);
"""
_MAX_TERMS = 32  # of a query: more of them find nothing better, and cost time


@dataclass(frozen=True)
class Found:
    """An e-mail in the index. `number` names it in the environment; `excerpt` is the place that matched a search."""

    number: int
    message_id: str
    day: str
    clock: str
    sender: str
    recipients: str
    subject: str
    excerpt: str


@dataclass(frozen=True)
class Filter:
    """Which e-mails: parts of a sender, recipient or subject, whatever their capitals; first and last day."""

    sender: str = ""
    recipient: str = ""
    subject: str = ""
    after: date | None = None
    before: date | None = None


class MailIndex:
    """A read-only full-text index over e-mails.

    Its connections are SQLite's `mode=ro`: whatever a query says, nothing can be written. What a model writes reaches
    SQL as bound values only, and a full-text query is made of its words, each quoted.

    Args:
        emails: what to index; numbered in their order from 1.
        path: where the index is written, and kept; default: a temporary file, which goes with this object.

    Raises:
        DatasetError: there are no e-mails.
    """

    def __init__(self, emails: Iterable[Email], path: str | Path | None = None) -> None:
        if path is None:
            handle, name = tempfile.mkstemp(prefix="trl_ext_mail_", suffix=".sqlite")
            os.close(handle)
            weakref.finalize(self, Path(name).unlink, missing_ok=True)
            path = name
        self.path = Path(path).absolute()
        self.size = _write(self.path, emails)
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()

    def search(self, query: str, kept: Filter | None = None, limit: int = 10) -> tuple[list[Found], bool]:
        """The best matches for the words of `query`, and whether they have all of them, or only some.

        A query without words finds the newest e-mails that the filter lets through.
        """
        terms = re.findall(r"\w+", _clean(query))[:_MAX_TERMS]
        if not terms:
            return self._select("", (), kept, limit), True
        for joint in (" AND ", " OR "):
            found = self._select("words MATCH ?", (joint.join(f'"{term}"' for term in terms),), kept, limit)
            if found:
                return found, joint == " AND "
        return [], True

    def read(self, number: int) -> tuple[Found, str] | None:
        """An e-mail and its body; None where there is none of that number."""
        if not 0 < number <= self.size:
            return None
        row = self._rows(f"SELECT {_COLUMNS}, '', body FROM email WHERE number = ?", (number,))[0]
        return Found(*row[:-1]), row[-1]

    def numbers(self, message_ids: Sequence[str]) -> list[int]:
        """The numbers of e-mails by their message ids.

        Raises:
            DatasetError: one of them is not in the mailbox.
        """
        found = []
        for message_id in message_ids:
            rows = self._rows("SELECT number FROM email WHERE message_id = ?", (message_id,))
            if not rows:
                raise DatasetError(f"source {message_id!r}: no e-mail of the mailbox has this message id")
            found.append(rows[0][0])
        return found

    def _select(self, match: str, values: tuple[str, ...], kept: Filter | None, limit: int) -> list[Found]:
        conditions, bound = ([match] if match else []), list(values)
        kept = kept or Filter()
        for column, part in (
            ("sender_folded", kept.sender),
            ("recipients_folded", kept.recipient),
            ("subject_folded", kept.subject),
        ):
            if part.strip():
                conditions.append(f"instr({column}, ?) > 0")
                bound.append(_clean(part).strip().casefold())
        for comparison, day in ((">=", kept.after), ("<=", kept.before)):
            if day is not None:
                conditions.append(f"day <> '' AND day {comparison} ?")
                bound.append(day.isoformat())
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        if match:
            table = "words JOIN email ON words.rowid = email.number"
            excerpt, order = "snippet(words, 1, '', '', '...', 20)", "rank, number"
        else:
            table, excerpt, order = "email", "substr(body, 1, 120)", "day DESC, clock DESC, number"
        rows = self._rows(
            f"SELECT {_COLUMNS}, {excerpt} FROM {table} {where} ORDER BY {order} LIMIT ?", (*bound, limit)
        )
        return [Found(*row) for row in rows]

    def _rows(self, statement: str, values: Sequence[Any]) -> list[Any]:
        """Run a statement on a connection that no other thread uses; there are as many as were ever used at a time."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            uri = f"{self.path.as_uri()}?mode=ro"
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            self._idle.put(connection)


_COLUMNS = "email.number, email.message_id, email.day, email.clock, email.sender, email.recipients, email.subject"


def _write(path: Path, emails: Iterable[Email]) -> int:
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(_SCHEMA)
        connection.executemany(
            "INSERT INTO email VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (_row(email) for email in emails)
        )
        connection.execute("INSERT INTO words (words) VALUES ('rebuild')")
        size: int = connection.execute("SELECT count(*) FROM email").fetchone()[0]
    if not size:
        raise DatasetError("the mailbox is empty: it must have at least one e-mail")
    return size


def _row(email: Email) -> tuple[str, ...]:
    day = f"{email.date:%Y-%m-%d}" if email.date else ""
    clock = f"{email.date:%H:%M}" if email.date else ""
    recipients = ", ".join(email.recipients)
    texts = [_clean(text) for text in (email.message_id, email.sender, recipients, email.subject, email.body)]
    message_id, sender, recipients, subject, body = texts
    folded = (sender.casefold(), recipients.casefold(), subject.casefold())
    return (message_id, day, clock, sender, recipients, subject, body, *folded)


def _clean(text: str) -> str:
    """Text that SQLite takes: no lone surrogates, no NUL, at which its functions would stop."""
    return text.encode("utf-8", "ignore").decode().replace("\0", "")
