"""What one episode was: its messages, its tokens exactly as sampled, its rewards turn by turn."""

import json
import math
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from trl_ext.agents.environment import Step, as_messages, encodable
from trl_ext.errors import ConfigError, DatasetError

Format = Literal["jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("jsonl", "parquet")
# Columns of free form: in Parquet, whose columns have one type each, they are JSON.
_FREE_FORM = ("messages", "metrics", "seconds", "row")


@dataclass
class Trajectory:
    """An episode that was played to its end, or that failed on its way there.

    `completion_ids` are the tokens after `prompt_ids`: the model's, as sampled, where `mask` is 1, and the
    environment's, where it is 0; `logprobs` (None where the engine gives none) has 0.0 for the latter. `rewards` has a
    number for each turn that the environment answered, and `turn_ends` the place in `completion_ids` of that turn's
    last token.

    Args:
        truncated: what cut the episode off: "environment", "max_turns", "context"; "" if nothing did.
        success: the last `info["success"]`; None if no step's `info` says it (a reply that is no action, for one).
        metrics: the numbers in the `info` of its steps, the last one of each name, and `invalid`, how many replies
            were no actions.
        failure: why it failed, in one line. Such an episode has no reward and trains nothing.
        group: which episodes have one goal: rows of one prompt in one batch.
        seconds: spent on `environment` (its calls) and on the whole `episode`, which waits for the others of its batch.
        called_at: when the environment was called, in Unix time: its reset, then each turn. Rollouts keep this.
        called_for: how many seconds each of these calls took.
        row: the columns of the dataset's row that JSON can hold.
    """

    messages: list[dict[str, Any]]
    prompt_ids: list[int] = field(default_factory=list, repr=False)
    completion_ids: list[int] = field(default_factory=list, repr=False)
    mask: list[int] = field(default_factory=list, repr=False)
    logprobs: list[float] | None = field(default=None, repr=False)
    rewards: list[float] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list, repr=False)
    terminated: bool = False
    truncated: str = ""
    success: bool | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    step: int = 0
    group: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    called_at: list[float] = field(default_factory=list, repr=False)
    called_for: list[float] = field(default_factory=list, repr=False)
    row: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def reward(self) -> float | None:
        """The sum over the turns; None for an episode that failed."""
        return None if self.failure is not None else math.fsum(self.rewards)

    @property
    def turns(self) -> int:
        """How often the environment answered the model."""
        return len(self.rewards)

    @property
    def sampled_tokens(self) -> int:
        """How many tokens the model wrote."""
        return sum(self.mask)

    @property
    def token_rewards(self) -> list[float]:
        """Each turn's reward on the turn's last token, 0 elsewhere: as long as `completion_ids`."""
        rewards = [0.0] * len(self.completion_ids)
        for place, reward in zip(self.turn_ends, self.rewards, strict=True):
            rewards[place] = reward
        return rewards

    @property
    def replies(self) -> list[int]:
        """Where in `messages` the model's replies are. Examples of them in the prompt come before, and are none."""
        return reply_places(self.messages, self.turns)

    @property
    def opening(self) -> str:
        """What the model read before its first turn, as text."""
        end = self.replies[0] if self.replies else len(self.messages)
        return "\n".join(content_text(message) for message in self.messages[:end])

    def exchanges(self) -> list[tuple[str, str]]:
        """The model's replies as text, each with what the environment answered: "" where the episode was cut off."""
        starts = self.replies
        between = zip(starts, [*starts[1:], len(self.messages)], strict=False)
        texts = list(map(content_text, self.messages))
        return [(texts[start], "\n".join(texts[start + 1 : end])) for start, end in between]

    def add(self, step: Step) -> None:
        """Take what the environment answered to a turn whose tokens are the last of `completion_ids`, if it has any."""
        self.messages += as_messages(step.observation)
        self.rewards.append(step.reward)
        if self.completion_ids:
            self.turn_ends.append(len(self.completion_ids) - 1)
        numbers = {name: float(value) for name, value in step.info.items() if isinstance(value, int | float)}
        invalid = self.metrics.get("invalid", 0.0) + ("invalid" in step.info)
        self.metrics |= {name: value for name, value in numbers.items() if math.isfinite(value)} | {"invalid": invalid}
        if "success" in step.info:
            self.success = bool(step.info["success"])
        self.terminated = step.terminated
        self.truncated = "environment" if step.truncated and not step.terminated else ""

    def to_json(self) -> dict[str, Any]:
        """As an object that JSON can hold; `reward` and `turns` are in it for who reads it without this package."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return values | {"reward": self.reward, "turns": self.turns}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Trajectory":
        """What `to_json` was given.

        Raises:
            DatasetError: it is no trajectory.
        """
        if not isinstance(values, dict) or "messages" not in values:
            raise DatasetError("no trajectory: it must be an object with 'messages'")
        empty = vars(cls([]))
        known = {name: value for name, value in values.items() if name in empty}
        for name, value in known.items():
            if isinstance(empty[name], list | dict | str) and not isinstance(value, type(empty[name])):
                raise DatasetError(
                    f"no trajectory: {name!r} is {value!r:.40}, and must be a {type(empty[name]).__name__}"
                )
        if not all(isinstance(message, dict) and "role" in message for message in known["messages"]):
            raise DatasetError("no trajectory: each of its 'messages' must be an object with a 'role'")
        return cls(**known)


def write_trajectories(path: str | Path, trajectories: Sequence[Trajectory]) -> None:
    """Write a .jsonl or .parquet file, which nobody ever sees in part.

    Raises:
        ConfigError: the name ends otherwise.
    """
    path = Path(path)
    rows = [trajectory.to_json() for trajectory in trajectories]
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        if path.suffix == ".jsonl":
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            part.write_text(lines, encoding="utf-8", errors="backslashreplace")  # half an emoji, as JSON writes it
        elif path.suffix == ".parquet":
            table = pd.DataFrame([row | {name: json.dumps(row[name]) for name in _FREE_FORM} for row in rows])
            table.to_parquet(part, index=False)
        else:
            raise ConfigError(f"{str(path)!r}: trajectories are written as .jsonl or .parquet")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_trajectories(path: str | Path) -> list[Trajectory]:
    """The trajectories of a file, or of all files of a recorder's folder, in order.

    A folder that has both formats is read from Parquet.

    Raises:
        DatasetError: there are none, or a line is no trajectory.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.parquet")) or sorted(path.glob("*.jsonl"))
        found = [trajectory for file in files for trajectory in read_trajectories(file)]
    else:
        found = [_read_row(path, number, row) for number, row in enumerate(_read_rows(path), 1)]
    if not found:
        raise DatasetError(f"{str(path)!r} has no trajectories: give a .jsonl or .parquet file, or a folder of them")
    return found


class TrajectoryRecorder:
    """Writes the episodes of a run into a folder: a file for each batch and process, whole or not at all.

    So a run that is killed loses none but those it was playing. A resumed run overwrites nothing.

    Args:
        folder: made where it does not exist.
        formats: "jsonl" for people, "parquet" for programs.

    Raises:
        ConfigError: an unknown format.
    """

    def __init__(self, folder: str | Path, formats: Iterable[Format] = FORMATS):
        self.folder, self.formats = Path(folder), tuple(formats)
        if unknown := sorted(set(self.formats) - set(FORMATS)):
            raise ConfigError(f"formats: no {', '.join(map(repr, unknown))}; there are {', '.join(FORMATS)}")

    def __call__(self, trajectories: Sequence[Trajectory], split: str, process: int = 0) -> None:
        """Write a batch. `split` ("train", "eval") is a part of the file's name."""
        if not trajectories:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        stem, count = f"{split}_{trajectories[0].step:06d}_p{process}", 0
        while any(self._path(stem, count, name).exists() for name in self.formats):
            count += 1
        for name in self.formats:
            write_trajectories(self._path(stem, count, name), trajectories)

    def _path(self, stem: str, count: int, name: str) -> Path:
        return self.folder / f"{stem}_{count:03d}.{name}"


def reply_places(messages: Sequence[dict[str, Any]], turns: int) -> list[int]:
    """Where the replies of an episode of so many turns are: the last ones, with one that was not answered."""
    said = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    unanswered = bool(said) and said[-1] == len(messages) - 1
    return said[max(len(said) - turns - unanswered, 0) :]


def content_text(message: dict[str, Any]) -> str:
    """A message's content as text; of blocks that are none, what they are."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(block.get("text") or f"<{block.get('type')}>" for block in content if isinstance(block, dict))
    return str(content or "")


def failure_text(error: BaseException) -> str:
    """An exception in one line of text that any file can hold."""
    return encodable(" ".join(f"{type(error).__name__}: {error}".split()))[:500]


def successes(played: Sequence[Trajectory]) -> list[bool]:
    """Which of the episodes succeeded: where one says that it did or did not, no word of it is none. Else nothing."""
    return [bool(one.success) for one in played] if any(one.success is not None for one in played) else []


def json_columns(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a dataset's row that JSON can hold, without the prompt."""

    def holds(value: Any) -> bool:
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            return False
        return True

    return {name: value for name, value in row.items() if name != "prompt" and holds(value)}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            rows = [{str(name): _plain(value) for name, value in row.items()} for row in table.to_dict("records")]
            return [row | {name: json.loads(row[name]) for name in _FREE_FORM if name in row} for row in rows]
        with path.open(encoding="utf-8") as file:  # `splitlines` would split at characters that stand in a text, too
            return [json.loads(line) for line in file if line.strip()]
    except (OSError, TypeError, ValueError) as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {' '.join(str(error).split())}") from None


def _plain(value: Any) -> Any:
    """A value of a Parquet column as JSON has it."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


def _read_row(path: Path, number: int, row: Any) -> Trajectory:
    try:
        return Trajectory.from_json(row)
    except (DatasetError, TypeError) as error:
        raise DatasetError(f"{path}:{number}: {error}") from None
