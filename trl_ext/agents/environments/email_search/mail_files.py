"""A user's own mailbox and questions: mbox, JSONL and CSV files."""

import csv
import email.policy
import email.utils
import json
import mailbox
from collections.abc import Iterator
from datetime import datetime
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from trl_ext.agents.environments.email_search.mail import Email, Question
from trl_ext.errors import DatasetError

FORMATS = (".mbox", ".jsonl", ".csv")


def read_mailbox(path: str | Path) -> list[Email]:
    """The e-mails of a file. Rows of JSONL and CSV have `sender`, `subject`, `body` and, where known, `id`,
    `recipients` (a list, or text with commas or semicolons) and `date` (ISO or as e-mails write it).

    Raises:
        DatasetError: the file cannot be read, has another format, or a row lacks a column; the message says which row.
    """
    path = Path(path)
    if path.suffix == ".mbox":
        if not path.is_file():
            raise DatasetError(f"mailbox {str(path)!r}: no such file")
        box = mailbox.mbox(path, create=False)
        return [_from_message(number, box.get_bytes(key)) for number, key in enumerate(box.keys(), 1)]
    return [_from_row(path, number, row) for number, row in _rows(path, "mailbox")]


def read_questions(path: str | Path) -> list[Question]:
    """Questions from JSONL or CSV: `question`, `answer` (empty: the mailbox does not say), `aliases`, `sources`.

    `sources` are message ids. In CSV, lists are written with semicolons.

    Raises:
        DatasetError: the file cannot be read, or a row has no question.
    """
    questions = []
    for number, row in _rows(Path(path), "questions"):
        text = row.get("question")
        if not isinstance(text, str) or not text.strip():
            raise DatasetError(f"{path}:{number}: 'question' must be text")
        answer = row.get("answer")
        aliases, sources = (_as_list(row.get(name), ";") for name in ("aliases", "sources"))
        questions.append(Question(text, str(answer) if answer not in (None, "") else None, aliases, sources))
    return questions


def _rows(path: Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix not in (".jsonl", ".csv"):
        raise DatasetError(f"{what} {str(path)!r}: must end in one of {', '.join(FORMATS)}")
    try:
        with path.open(encoding="utf-8-sig", newline="" if path.suffix == ".csv" else None) as file:
            if path.suffix == ".csv":
                csv.field_size_limit(2**31 - 1)  # of 128 KB by default, which an e-mail may have
                reader = csv.DictReader(file, restkey="")
                yield from ((reader.line_num, row) for row in reader)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DatasetError(f"{path}:{number}: must be a JSON object")
                    yield number, row
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}:{number}: not JSON: {error}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{what} {str(path)!r} cannot be read: {error}") from None


def _from_row(path: Path, number: int, row: dict[str, Any]) -> Email:
    missing = [name for name in ("sender", "subject", "body") if not isinstance(row.get(name), str)]
    if missing:
        raise DatasetError(f"{path}:{number}: {', '.join(map(repr, missing))} must be text; the row has {sorted(row)}")
    date = row.get("date")
    parsed = _date(str(date)) if date else None
    if date and parsed is None:
        raise DatasetError(f"{path}:{number}: date {date!r}: must be ISO (2024-03-01 14:30) or as e-mails write it")
    recipients = row.get("recipients") or ()
    if isinstance(recipients, str):
        recipients = _as_list(recipients.replace(",", ";"), ";")
    elif not isinstance(recipients, list | tuple):
        raise DatasetError(f"{path}:{number}: recipients {recipients!r}: must be a list, or text")
    return Email(
        str(row.get("id") or number), parsed, row["sender"], tuple(map(str, recipients)), row["subject"], row["body"]
    )


def _as_list(value: Any, separator: str) -> tuple[str, ...]:
    parts = value.split(separator) if isinstance(value, str) else value or ()
    return tuple(part for part in (str(part).strip() for part in parts) if part)


def _date(text: str) -> datetime | None:
    for parse in (datetime.fromisoformat, email.utils.parsedate_to_datetime):
        try:
            return parse(text.strip())
        except (ValueError, OverflowError):
            continue
    return None


def _from_message(number: int, message: bytes) -> Email:
    """Mail as it comes: what is broken in it is left out, and is no reason to refuse the mailbox."""
    parsed = email.message_from_bytes(message, policy=email.policy.default)
    headers = {name: _header(parsed, name) for name in ("Message-ID", "Date", "From", "To", "Cc", "Subject")}
    recipients = tuple(part.strip() for name in ("To", "Cc") for part in headers[name].split(",") if part.strip())
    return Email(
        headers["Message-ID"] or str(number), _date(headers["Date"]), headers["From"], recipients, headers["Subject"],
        _body(parsed),
    )  # fmt: skip


def _header(message: EmailMessage, name: str) -> str:
    try:
        return str(message[name] or "").strip()
    except (ValueError, IndexError, AttributeError, TypeError):  # what Python's parser makes of some broken headers
        return ""


def _body(message: EmailMessage) -> str:
    part = message.get_body(("plain", "html"))
    if part is None:
        return ""
    try:
        text = str(part.get_content())
    except (LookupError, ValueError, KeyError):  # an encoding that does not exist
        payload = part.get_payload(decode=True)
        text = payload.decode("utf-8", "replace") if isinstance(payload, bytes) else ""
    return _html_text(text) if part.get_content_type() == "text/html" else text


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.hidden += tag in ("script", "style")
        if tag in ("br", "p", "div", "tr", "li"):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if self.hidden <= 0:
            self.parts.append(data)


def _html_text(html: str) -> str:
    parser = _Text()
    parser.feed(html)
    return "".join(parser.parts).strip()
