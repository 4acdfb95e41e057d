"""The same update for less work: rows without a gradient are left out, the others sorted by length and cut to it."""

import math
from functools import cached_property
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor
from trl import GRPOTrainer

from trl_ext.trainers import positions
from trl_ext.trainers._trl_contract import MULTIMODAL, check_trl
from trl_ext.trainers.lean_plan import padded, plan_window
from trl_ext.trainers.rows import Rows, lengths, loss_mask, merge, parts, take

check_trl()
logger = get_logger(__name__)

# TRL's loss types by what divides the sum over a micro-batch: its number of rows, or the tokens of the whole batch.
# Not in the list is "bnpo", a mean over the tokens of each micro-batch: there the grouping of rows is part of the loss.
_BY_ROWS = ("grpo", "sapo", "dr_grpo", "luspo")
_BY_BATCH = ("cispo", "dapo", "vespo")
_SCALE = "lean_loss_scale"


class LeanUpdateMixin(GRPOTrainer):
    """A `GRPOTrainer` whose updates are the same, within rounding, and take less work.

    TRL pads every row of a rollout to the longest one, and runs forward and backward on groups whose advantages are
    all 0. Here the rows of one optimizer step (never of more: no step sees only short ones) that can have a gradient
    are sorted by length, spread over the step's micro-batches by padded tokens, and each micro-batch is cut to its own
    longest prompt and completion. What the losses are divided by stays that of the whole batch. Passes over a rollout
    without a gradient (old policy, reference, values) are sorted and cut in the same way.

    Every process runs as many forwards and backwards as before, with as many rows in each as the others. Where a loss
    depends on which rows share a micro-batch (`loss_type="bnpo"`, an entropy bonus, `top_entropy_quantile`, the
    auxiliary loss of mixtures of experts), rows stay where they are and only padding is cut; with images, and with
    rotary positions that depend on the longest row, nothing is done. Either is said once.

    On unless `args.lean_update`, or a class attribute of that name, is False. Metrics: `lean/rows_skipped` and
    `lean/tokens_saved`, the shares of rows left out and of padded tokens not processed, over all processes. Entropy and
    clip ratios are over the rows that are kept.

    Example:

    ```python
    class MyTrainer(LeanUpdateMixin, GRPOTrainer):
        pass
    ```
    """

    lean_update: bool = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lean_update = getattr(self.args, "lean_update", self.lean_update)
        self._unplanned = 0  # micro-batches of this optimizer step that are not in `_planned` yet
        self._planned: list[Rows] = []

    @cached_property
    def _is_lean(self) -> bool:
        if self.lean_update and any(map(positions.depend_on_batch, self._configs())):
            logger.warning("lean_update does nothing: the model's positions depend on the longest row of a batch")
            return False
        return self.lean_update

    @cached_property
    def _cuts_prompts(self) -> bool:
        if all(map(positions.only_distances_count, self._configs())):
            return True
        logger.warning("lean_update leaves the padding of prompts: the model counts its positions from there")
        return False

    def _configs(self) -> list[Any]:
        """Of the models that read the rows."""
        return [self.model.config]

    # The micro-batches of an optimizer step

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Called by `Trainer` at the beginning of an optimizer step, for what its micro-batches get."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._unplanned, self._planned = len(batches), []
        return batches, num_items

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        if not self._is_lean or not self.model.training:
            return inputs
        if not self._planned:
            start = self._step % self.args.steps_per_generation
            plain = self._buffered_inputs[start : start + max(self._unplanned, 1)]  # those of one rollout
            self._unplanned -= len(plain)
            self._planned = self._lean_micro_batches(plain)
        return self._planned.pop(0)

    def _lean_micro_batches(self, plain: list[Rows]) -> list[Rows]:
        size = len(plain[0]["completion_ids"])
        names = [f"{part}_mask" for part in parts(plain[0])]
        masks = merge([{name: batch[name] for name in names} for batch in plain])
        kept = self._lengths_kept(masks)
        # Each process plans for all of them, for it must know how many rows the others take.
        of_rows = [
            torch.cat([self._rows_with_gradient(batch) for batch in plain]),
            torch.full((len(kept),), sum(masks[name].size(1) for name in names)),
            torch.full((len(kept),), any(name in plain[0] for name in MULTIMODAL)),
        ]
        table = torch.cat([torch.stack([column.to(kept) for column in of_rows], 1), kept], 1)
        everywhere = self.accelerator.gather(table).view(-1, *table.shape).tolist()
        if any(row[2] for rows in everywhere for row in rows):
            logger.warning_once("lean_update does nothing for rows with images")
            return plain
        lengths_kept = [[row[3:] for row in rows] for rows in everywhere]
        if self._may_regroup:
            needed = [[bool(row[0]) for row in rows] for rows in everywhere]
            plan = plan_window(lengths_kept, needed, len(plain))
        else:
            as_they_are = [list(range(start, start + size)) for start in range(0, len(kept), size)]
            plan = [as_they_are] * len(everywhere)
        self._log_savings(plan, lengths_kept, sum(row[1] for rows in everywhere for row in rows))

        rows, mine = merge(plain), self.accelerator.process_index
        micro_batches = []
        for index in plan[mine]:
            widths = [max(column) for column in zip(*(lengths_kept[mine][row] for row in index), strict=True)]
            micro_batches.append(take(rows, index, widths))
            if self.loss_type in _BY_ROWS:
                micro_batches[-1][_SCALE] = len(index) / size
        return micro_batches

    @cached_property
    def _may_regroup(self) -> bool:
        reasons = {
            f"loss_type = {self.loss_type!r} is a mean over each of them": self.loss_type not in _BY_ROWS + _BY_BATCH,
            "the entropy bonus is a mean over each of them": self._entropy_bonus_enabled,
            "top_entropy_quantile is taken in each of them": self.top_entropy_quantile < 1.0,
            "the auxiliary loss of experts is one of each of them": self.aux_loss_enabled,
        }
        for reason, holds in reasons.items():
            if holds:
                logger.warning("lean_update cuts padding, and leaves rows in their micro-batches: %s", reason)
                return False
        return True

    def _rows_with_gradient(self, rows: Rows) -> Tensor:
        """Those that can have one, shape (B,). A subclass whose loss has more terms adds the rows that these reach."""
        mask = loss_mask(rows).bool()
        if self.beta != 0.0:
            return mask.any(1)
        advantages: Tensor = rows["advantages"]
        return (mask & (advantages.view(len(mask), -1) != 0)).any(1)

    def _lengths_kept(self, rows: Rows) -> Tensor:
        """The lengths that rows are padded to if they are the longest of their micro-batch. Shape (B, parts)."""
        names, multiple = parts(rows), self.pad_to_multiple_of or 1
        found = lengths(rows)
        full = found.new_tensor([rows[f"{name}_mask"].size(1) for name in names])
        kept = torch.minimum((found.clamp(min=1) + multiple - 1) // multiple * multiple, full)
        whole = found.new_tensor([name.endswith("prompt") and not self._cuts_prompts for name in names])
        return torch.where(whole.bool(), full, kept)

    def _log_savings(self, plan: list[list[list[int]]], kept: list[list[list[int]]], tokens: float) -> None:
        micro_batches = [[rows[row] for row in index] for rows, each in zip(kept, plan, strict=True) for index in each]
        self._metrics["train"]["lean/rows_skipped"].append(1 - sum(map(len, micro_batches)) / sum(map(len, kept)))
        self._metrics["train"]["lean/tokens_saved"].append(1 - sum(map(padded, micro_batches)) / tokens)

    def _compute_loss(self, model: Any, inputs: Rows) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        return loss * inputs[_SCALE] if _SCALE in inputs else loss

    # Passes over a rollout without a gradient

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **kwargs: Any,
    ) -> Any:
        inputs = model, input_ids, attention_mask, logits_to_keep
        more = {"compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss, **kwargs}
        has_images = any(value is not None for value in kwargs.values())
        if not self._is_lean or batch_size is None or compute_aux_loss or has_images:
            return self._forward_rows(*inputs, batch_size=batch_size, **more)
        rows = {
            "prompt_ids": input_ids[:, :-logits_to_keep],
            "prompt_mask": attention_mask[:, :-logits_to_keep],
            "completion_ids": input_ids[:, -logits_to_keep:],
            "completion_mask": attention_mask[:, -logits_to_keep:],
        }
        kept = self._lengths_kept(rows).tolist()
        # as many forwards as TRL runs, and so as many on every process
        (plan,) = plan_window([kept], [[True] * len(kept)], math.ceil(len(kept) / batch_size))
        whole: list[Tensor | None] = []
        for index in plan:
            widths = [max(column) for column in zip(*(kept[row] for row in index), strict=True)]
            part = take(rows, index, widths)
            ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
            attention = torch.cat([part["prompt_mask"], part["completion_mask"]], 1)
            length = part["completion_ids"].size(1)
            outputs = self._forward_rows(model, ids, attention, length, **more)
            whole = whole or [None if each is None else each.new_zeros(len(kept), logits_to_keep) for each in outputs]
            for into, each in zip(whole, outputs, strict=True):
                if into is not None:
                    into[index, :length] = each
        return tuple(whole)

    def _forward_rows(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's forward. A subclass may append tensors (B, T) to the three that it returns."""
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)
