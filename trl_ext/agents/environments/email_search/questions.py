"""Which mailbox an environment searches, and which questions it asks."""

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from trl_ext.agents.environments.email_search.index import MailIndex
from trl_ext.agents.environments.email_search.mail import Question
from trl_ext.agents.environments.email_search.mail_files import read_mailbox, read_questions
from trl_ext.agents.environments.email_search.synthetic import synthetic_mailbox
from trl_ext.errors import ConfigError

Split = Literal["all", "train", "test"]


def load_mailbox(
    mailbox: MailIndex | str | Path | None, questions: Sequence[Question] | str | Path | None, emails: int, seed: int
) -> tuple[MailIndex, Sequence[Question]]:
    """The index and the questions, of which environments that name the same files share one index.

    Raises:
        ConfigError: one without the other.
        DatasetError: a file cannot be read.
    """
    if mailbox is None:
        if questions is not None:
            raise ConfigError("questions: given without a mailbox")
        with _ONE_AT_A_TIME:
            return _synthetic_index(emails, seed), synthetic_mailbox(emails, seed)[1]
    if questions is None:
        raise ConfigError("mailbox: needs questions about it (a .jsonl or .csv file)")
    if not isinstance(mailbox, MailIndex):
        path = Path(mailbox)
        with _ONE_AT_A_TIME:
            mailbox = _file_index(path, path.stat().st_mtime_ns if path.is_file() else 0)
    return mailbox, read_questions(questions) if isinstance(questions, str | Path) else questions


_ONE_AT_A_TIME = threading.Lock()  # a rollout makes its environments in threads: the first makes the index for all


@lru_cache(maxsize=4)
def _synthetic_index(emails: int, seed: int) -> MailIndex:
    return MailIndex(synthetic_mailbox(emails, seed)[0])


@lru_cache(maxsize=4)
def _file_index(path: Path, changed: int) -> MailIndex:
    return MailIndex(read_mailbox(path))


def part(questions: Sequence[Question], split: Split) -> list[Question]:
    """Every fifth question is for testing."""
    return [one for place, one in enumerate(questions) if split == "all" or (place % 5 == 4) == (split == "test")]
