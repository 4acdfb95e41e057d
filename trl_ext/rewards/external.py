"""Rewards by scorers that need older libraries than ours, each in a process of its own."""

import math
import os
import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

from trl_ext.errors import RewardError
from trl_ext.rewards.external_process import external_process
from trl_ext.rewards.models import is_empty, tokenizable
from trl_ext.rewards.registry import register_reward

MAX_CHARACTERS = 10_000  # of each text: the models read 512 tokens
_CHUNK = 1024  # rows that are sent at once


class _External:
    """The options that the scorers share, and how they score."""

    scorer: ClassVar[str]
    install: ClassVar[str]

    def __init__(self, python: str, model: str, batch_size: int, timeout: float, device: str | None, empty: float):
        found = shutil.which(os.path.expanduser(python))
        if found is None:
            raise ValueError(
                f"python = {python!r}: must be the Python interpreter of an environment that has the scorer, "
                f"made by: {self.install}"
            )
        if not model:
            raise ValueError("model = '': must be a name or a folder")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: must be at least 1")
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout = {timeout}: must be greater than 0")
        if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise ValueError(f"device = {device!r}: must be cpu, cuda or cuda: and a number")
        if not math.isfinite(empty):
            raise ValueError(f"empty = {empty}: must be finite")
        # Made absolute but not resolved: in a virtual environment it is a link, whose place tells Python where it is.
        self.python, self.model, self.batch_size, self.timeout = str(Path(found).absolute()), model, batch_size, timeout
        self.device, self.empty = device, empty

    def best(self, completions: list[str], rows_of: list[list[tuple[str, ...]]]) -> list[float | None]:
        """The best score over the rows of each completion, one for a reference; None where it has none."""
        needed = [
            row
            for completion, rows in zip(completions, rows_of, strict=True)
            for row in rows
            if not is_empty(completion)
        ]
        scores = self._scores(list(dict.fromkeys(needed)))

        def score(completion: str, rows: list[tuple[str, ...]]) -> float | None:
            if rows and is_empty(completion):
                return self.empty
            return max((known for row in rows if math.isfinite(known := scores[row])), default=None)

        return [score(completion, rows) for completion, rows in zip(completions, rows_of, strict=True)]

    def _scores(self, rows: list[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        scores: dict[tuple[str, ...], float] = {}
        if rows:
            process = external_process(self.scorer, self.python, self.model, self.device, self.install)
            for start in range(0, len(rows), _CHUNK):
                chunk = rows[start : start + _CHUNK]
                scores.update(zip(chunk, process.score(chunk, self.batch_size, self.timeout), strict=True))
        return scores


def _texts(target: Any) -> list[str]:
    """The references that say something, as the process gets them."""
    references = target if isinstance(target, list | tuple) else [target]
    cut = [tokenizable(str(reference), MAX_CHARACTERS) for reference in references if reference is not None]
    return [reference for reference in cut if not is_empty(reference)]


@register_reward("comet", range=(-1.0, 1.0), leans_on="unbabel-comet, apart", needs_model=True, cost="1 s", waits=True)
class Comet(_External):
    """COMET: how well the completion translates the source, by a model trained on human ratings (arXiv 2009.09025).

    The source is the prompt or a column, the translation the completion, the reference the target. The score is the
    model's own: about 0 to 1 for the default and other models from 2022 on, where 0 is no better than chance; older
    ones give z-scores. Several references: the best counts. An empty completion scores `empty`, below any text. None
    without a source, without a reference, or where the model gives no finite number.

    unbabel-comet needs transformers < 5, so that it runs in a process of its own, by the Python of another environment:

        python -m venv comet && comet/bin/pip install unbabel-comet "setuptools<81"

    The process starts with the first batch, which waits for the model, up to half an hour. All `comet` rewards of a
    process that name the same Python, model and device share it. It sees our environment variables, without PYTHONPATH
    and those of a distributed run, and ends with us. If it dies over a batch, it is started once more. Checkpoints are
    unpickled there: use those that you trust. Of each text the first 10,000 characters count; the model reads up to 512
    tokens.

    Args:
        python: the interpreter of that environment, such as comet/bin/python.
        model: a name on the Hub, a folder with checkpoints/model.ckpt and hparams.yaml, or that .ckpt file. The model
            that it was trained from (xlm-roberta-large) is looked for on the Hub too, for its configuration.
        source: the column with the text that was translated; the prompt if unset, which should then be that text alone.
        batch_size: rows per forward.
        timeout: seconds for a batch of up to 1,024 distinct rows; then the process is killed and the batch raises.
        device: cpu, cuda or cuda:N; that of this process if unset.
        empty: the score of an empty completion. For a model that gives z-scores take one below its lowest, such as -3.

    Raises:
        ConfigError: there is no such interpreter.
        RewardError: the process does not start: the scorer is not installed, or there is no such model.
        TimeoutError: no scores within `timeout`.
        ChildProcessError: the process died twice over a batch, or the library raised.
    """

    scorer = "comet"
    install = 'python -m venv comet && comet/bin/pip install unbabel-comet "setuptools<81"'

    def __init__(
        self,
        python: str,
        model: str = "Unbabel/wmt22-comet-da",
        source: str | None = None,
        batch_size: int = 16,
        timeout: float = 600.0,
        device: str | None = None,
        empty: float = -1.0,
    ):
        super().__init__(python, model, batch_size, timeout, device, empty)
        self.source = source

    def __call__(
        self, completions: list[str], target: list[Any], prompts: list[str] | None = None, **columns: list[Any]
    ) -> list[float | None]:
        sources: list[Any] = prompts or [None] * len(completions)
        if self.source is not None:
            if self.source not in columns:
                raise RewardError(f"comet: source = {self.source!r}: no such column, the batch has {sorted(columns)}")
            sources = columns[self.source]
        completions = [tokenizable(completion, MAX_CHARACTERS) for completion in completions]
        rows_of: list[list[tuple[str, ...]]] = [
            [(completion, reference, source) for source in _texts(text) for reference in _texts(references)]
            for completion, references, text in zip(completions, target, sources, strict=True)
        ]
        return self.best(completions, rows_of)


@register_reward("bleurt", range=(-1.0, 1.0), leans_on="BLEURT, apart", needs_model=True, cost="1 s", waits=True)
class Bleurt(_External):
    """BLEURT: how well the completion says what the reference says, by a model trained on ratings (arXiv 2004.04696).

    The score is the model's own: for BLEURT-20 about 0 (random words) to 1 (perfect), a little outside at times; the
    English ones before it go lower. Several references: the best counts. An empty completion scores `empty`, below any
    text. None without a reference, or where the model gives no finite number.

    BLEURT is made with TensorFlow, so that it runs in a process of its own, by the Python of another environment:

        python -m venv bleurt && bleurt/bin/pip install git+https://github.com/google-research/bleurt

    Process, texts and errors as with `comet`. Checkpoints that allow it (`dynamic_seq_length`) are run in the library's
    batches of like length. Of a GPU it takes the memory that it needs, not all.

    Args:
        python: the interpreter of that environment, such as bleurt/bin/python.
        model: the folder of a checkpoint, as unpacked from the archives that the library's checkpoints.md lists.
        batch_size, timeout, device, empty: as with `comet`.
    """

    scorer = "bleurt"
    install = "python -m venv bleurt && bleurt/bin/pip install git+https://github.com/google-research/bleurt"

    def __init__(
        self,
        python: str,
        model: str = "BLEURT-20",
        batch_size: int = 16,
        timeout: float = 600.0,
        device: str | None = None,
        empty: float = -1.0,
    ):
        super().__init__(python, model, batch_size, timeout, device, empty)

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        completions = [tokenizable(completion, MAX_CHARACTERS) for completion in completions]
        rows_of: list[list[tuple[str, ...]]] = [
            [(completion, reference) for reference in _texts(references)]
            for completion, references in zip(completions, target, strict=True)
        ]
        return self.best(completions, rows_of)
