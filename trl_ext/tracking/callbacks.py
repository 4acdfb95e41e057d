"""Trainer callbacks: a file of metrics, and a progress bar that shows the reward."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import ProgressCallback, TrainerCallback


class MetricsFile(TrainerCallback):
    """Writes every log of a run as one JSON line, `{"step": ..., ...}`, into a file.

    A new run starts a new file. A resumed run keeps the lines up to the step that it resumes from; where that is its
    end, also those of its end, and repeats none.
    """

    def __init__(self, path: str | Path, resume: bool = False):
        self.path = Path(path)
        self._extra: dict[str, Any] = {}
        self._has_end = False
        if PartialState().is_main_process:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._keep(read_metrics(self.path) if resume and self.path.exists() else [])

    @contextlib.contextmanager
    def marked(self, **extra: Any) -> Iterator[None]:
        """Add `extra` to the lines written inside, e.g. `split="heldout"`."""
        self._extra = extra
        try:
            yield
        finally:
            self._extra = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero or state.global_step == 0:
            return
        kept = [row for row in read_metrics(self.path) if row["step"] <= state.global_step]
        if state.global_step < state.max_steps:  # an earlier run that had fewer steps to go may have ended here
            kept = [row for row in kept if "train_runtime" not in row and row.get("measured") != "after"]
        self._has_end = any("train_runtime" in row for row in kept)
        self._keep(kept)

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        """Write the file anew. As one step: what a run that is killed meanwhile has logged is not lost."""
        draft = self.path.with_suffix(".draft")
        draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
        draft.replace(self.path)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs is not None and not (self._has_end and "train_runtime" in logs):
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **self._extra, **logs}) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `MetricsFile`, in order. A last line that a killed run left half-written is dropped."""
    rows: list[dict[str, Any]] = []
    for line in Path(path).read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


class RewardProgress(ProgressCallback):
    """transformers' progress bar, with the latest metrics beside it in place of a printed line per log."""

    SHOWN = ("reward", "entropy", "clip_ratio/high_positive")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = {name.split("/")[0]: f"{logs[name]:.3g}" for name in self.SHOWN if logs.get(name) is not None}
            self.training_bar.set_postfix(shown)
