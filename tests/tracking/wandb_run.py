"""Reads what W&B wrote offline: its transaction log, and the tables beside it."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, struct.Struct("<IHB")  # LevelDB's log: checksum, length, and whether a record is whole


def records(log: Path) -> Iterator[Any]:
    """The records of a .wandb file, as W&B's protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = log.read_bytes(), 7, b""
    while place + _HEADER.size <= len(data):
        if (left := _BLOCK - place % _BLOCK) < _HEADER.size:
            place += left
            continue
        _, length, kind = _HEADER.unpack_from(data, place)
        place += _HEADER.size + length
        parts += data[place - length : place]
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


class OfflineRun:
    """The one run under a folder: what it logged, its artifacts, and its tables."""

    def __init__(self, folder: Path):
        (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        found = list(records(log))
        self.files = log.parent / "files"
        self.history = [_values(record.history.item) for record in found if record.HasField("history")]
        self.runs = {record.run.run_id for record in found if record.HasField("run")}
        self.artifacts = [record.artifact for record in found if record.HasField("artifact")]

    def tables(self, name: str) -> list[list[dict[str, Any]]]:
        """The rows of each table that was logged under a name, in order."""
        logged = [row[f"{name}.path"] for row in self.history if f"{name}.path" in row]
        return [_rows(json.loads((self.files / path).read_text())) for path in logged]


def _values(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
