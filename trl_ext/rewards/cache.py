"""Scores that outlive a run, in a folder."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

FILE_NAME = "scores.sqlite"
_AT_ONCE = 500  # SQLite takes at least 999 parameters in a statement


class ScoreCache:
    """Scores by what they were computed from: a reward type, its options and a row. Shared by processes and runs.

    Rows that JSON cannot hold (images, tensors) are not kept, nor are scores of None, which may be a passing failure.
    """

    def __init__(self, folder: str, identity: Any):
        self.path = Path(folder).expanduser() / FILE_NAME
        self._identity = json.dumps(identity, sort_keys=True, default=repr)

    def key(self, row: dict[str, Any]) -> str | None:
        """What the score of a row is kept under; None if it is not kept."""
        try:
            text = json.dumps([self._identity, row], sort_keys=True)
        except TypeError:
            return None
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, keys: Iterable[str]) -> dict[str, float]:
        """The scores that are there."""
        wanted = list(keys)
        found: dict[str, float] = {}
        with closing(self._connect()) as database:
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                places = ",".join("?" * len(part))
                found.update(database.execute(f"SELECT key, score FROM scores WHERE key IN ({places})", part))
        return found

    def write(self, scores: dict[str, float]) -> None:
        with closing(self._connect()) as database, database:
            database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", scores.items())

    def _connect(self) -> sqlite3.Connection:
        # a connection per batch: it may be another thread's, or a forked process's
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.path, timeout=60)
        database.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL) WITHOUT ROWID")
        return database
