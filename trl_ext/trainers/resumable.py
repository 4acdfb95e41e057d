"""Runs that survive being killed: checkpoints that are complete or known not to be, and a resume that finds them."""

import contextlib
import difflib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object
from datasets import IterableDataset
from safetensors import SafetensorError
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from trl_ext.errors import CheckpointError
from trl_ext.trainers import checkpoints
from trl_ext.trainers.preemption import PreemptionCallback

logger = get_logger(__name__)


class ResumableMixin(GRPOTrainer):
    """`GRPOTrainer` with checkpoints that a killed run can go on from (docs/resilience.md).

    A checkpoint is sealed after everything of it, on all processes and by all callbacks, is on the disk; only then are
    older ones deleted. With `metric_for_best_model` and no evaluation, the best one by that metric of the training logs
    (their mean since the checkpoint before) is kept as well as the newest.

    Raises:
        CheckpointError: a checkpoint cannot be written, or not be resumed from.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._unsealed: Path | None = None
        self._saved_at: int | None = None
        self._train_sampler: Any = None
        self._orders_drawn = 0
        self._newest: Path | None = None
        self._preemption: PreemptionCallback | None = None
        if self.args.enable_jit_checkpoint:
            theirs = self.pop_callback(JITCheckpointCallback)
            theirs.on_train_end(self.args, self.state, self.control)  # gives back the signal that it took
            self._preemption = PreemptionCallback()
            self.add_callback(self._preemption)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; `resume_from_checkpoint` may be "auto": the newest complete checkpoint, if there is one.

        Raises:
            CheckpointError: the checkpoint that was named is not complete, or True was given and there is none.
            SystemExit: with status 0, after a SIGTERM and the checkpoint that it led to (`enable_jit_checkpoint`).
        """
        output_dir = str(self.args.output_dir)
        checkpoint = checkpoints.resolve_checkpoint(resume_from_checkpoint, output_dir)
        if checkpoint is None and any(Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{checkpoints.SEAL}")):
            logger.warning("output_dir %r has checkpoints of another run, which 'auto' may take later", output_dir)
        self._saved_at, self._orders_drawn = None, 0
        self._newest = Path(checkpoint) if checkpoint else None
        try:
            output = super().train(checkpoint, *args, **kwargs)
        finally:
            if self._preemption is not None:  # a training that fails comes to no on_train_end
                self._preemption.on_train_end(self.args, self.state, self.control)
        step, last = self.state.global_step, self.state.max_steps
        if self._preemption is not None and self._preemption.stopped:
            logger.warning("stopped by SIGTERM at step %d of %d: resume_from_checkpoint auto goes on", step, last)
            raise SystemExit(0)
        if checkpoint is not None and self._initial_global_step == step:
            logger.warning("%s is at step %d of %d: there was nothing left to train", checkpoint, step, last)
            self._load_rng_state(checkpoint)  # an evaluation that follows samples what it would have
        return output

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _run_epoch(self, *args: Any, epochs_trained: int, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed from its end: Trainer would make one step more
            self.control.should_training_stop = True
            return
        resumes = 0 < self.state.global_step == self._initial_global_step
        if resumes and isinstance(self.train_dataset, IterableDataset) and self.state.epoch >= 1.0:
            logger.warning(
                "the checkpoint is of pass %d over an IterableDataset, whose length Trainer does not know: the run "
                "goes on at the beginning of pass 2, not where it was",
                int(self.state.epoch) + 1,
            )
        # TRL's sampler draws each epoch's order from a generator of its own, which begins anew in a resumed run
        generator = getattr(self._train_sampler, "generator", None)
        while generator is not None and self._orders_drawn < epochs_trained:
            torch.randperm(self._train_sampler.num_samples, generator=generator)
            self._orders_drawn += 1
        super()._run_epoch(*args, epochs_trained=epochs_trained, **kwargs)

    # Writing

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoint = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._find_best()
        with self._writing(checkpoint), self._keeping_all():
            if self.args.should_save:
                checkpoints.begin(checkpoint)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self._save_process_state(checkpoint)
        self._unsealed = checkpoint

    def _save_process_state(self, checkpoint: Path) -> None:
        """Write what this process has to keep beside what transformers does."""

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._unsealed is not None:  # callbacks have written theirs by now
            checkpoint, self._unsealed = self._unsealed, None
            with self._writing(checkpoint):
                self._seal(checkpoint)

    def _seal(self, checkpoint: Path) -> None:
        args = self.args
        self.accelerator.wait_for_everyone()
        if args.save_on_each_node:
            digests = checkpoints.digest(checkpoint) if args.should_save else {}
        else:
            share = checkpoints.digest(checkpoint, args.process_index, args.world_size)
            digests = dict(gather_object(list(share.items())))
        self._saved_at, self._newest = self.state.global_step, checkpoint
        if args.should_save:
            checkpoints.write_seal(checkpoint, digests)
            self._rotate()

    def _rotate(self) -> None:
        best = self.state.best_model_checkpoint
        keep = {path for path in (self._newest, best and Path(best)) if path is not None}
        if self._newest is not None:
            checkpoints.rotate(self._newest.parent, self.args.save_total_limit, keep)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        with self._keeping_all():  # Trainer would delete the newest for the best where the limit is 1
            output = super()._finalize_training(*args, **kwargs)
        if self.args.should_save:  # a run that was killed while it deleted may have left something
            self._rotate()
        return output

    @contextlib.contextmanager
    def _keeping_all(self) -> Iterator[None]:
        """Trainer deletes old checkpoints when its own part of the new one is written; we wait for all of it."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit

    @contextlib.contextmanager
    def _writing(self, checkpoint: Path) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = _disk_error(error, checkpoint)
            if reason is None:
                raise
            with contextlib.suppress(OSError):
                checkpoints.discard(checkpoint)
            previous = checkpoints.newest_complete_checkpoint(checkpoint.parent)
            before = "there is none before it" if previous is None else f"{previous} is intact"
            raise CheckpointError(f"{checkpoint} cannot be written: {reason}; {before}") from error

    def _find_best(self) -> None:
        """Trainer looks for the best in evaluations; without them, look in the training logs."""
        name, state = self.args.metric_for_best_model, self.state
        if name is None or self.args.eval_strategy != "no":
            return
        since = self._initial_global_step if self._saved_at is None else self._saved_at
        logged = [row for row in state.log_history if row["step"] > since]
        values = [row[name] for row in logged if row.get(name) is not None]
        if logged and not values:
            known = sorted({key for row in logged for key in row})
            close = ", ".join(map(repr, difflib.get_close_matches(name, known) or known))
            logger.warning(
                "metric_for_best_model = %r was not logged since step %d, so this one is not the best; is it %s?",
                *(name, since, close),
            )
        mean = [sum(values) / len(values)] if values else [None]
        (value,) = broadcast_object_list(mean)  # a metric of a reward may differ from process to process
        if value is None:
            return
        better = state.best_metric is None or (
            value > state.best_metric if self.args.greater_is_better else value < state.best_metric
        )
        if better:  # Trainer finds the folder, keeps it and remembers it
            state.best_metric, state.best_global_step = value, state.global_step


def _disk_error(error: Exception, checkpoint: Path) -> str | None:
    """What kept a file from being written, if that is what `error` is about."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    if isinstance(error, SafetensorError):
        return " ".join(str(error).split())
    if "inline_container" in str(error):  # all that torch.save says
        try:
            tempfile.TemporaryFile(dir=checkpoint.parent).close()
        except OSError as refusal:
            return str(refusal.strerror)
        free = shutil.disk_usage(checkpoint.parent).free
        return f"torch.save could not write a whole file ({free / 2**20:.0f} MiB are free on the disk)"
    return None
