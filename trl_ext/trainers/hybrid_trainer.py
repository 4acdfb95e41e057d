"""SFT and RL in one run: a `PPOTrainer` some of whose optimizer steps, or part of whose loss, is on demonstrations."""

import itertools
import textwrap
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from trl_ext.errors import ConfigError
from trl_ext.trainers._trl_contract import check_trl
from trl_ext.trainers.demonstrations import (
    Demonstration,
    as_prompts,
    check_demonstrations,
    collate,
    endless,
    shuffled,
    tokenize,
)
from trl_ext.trainers.hybrid_config import HybridConfig
from trl_ext.trainers.hybrid_schedule import Phase
from trl_ext.trainers.merged_checkpoints import MergedCheckpointsMixin
from trl_ext.trainers.preflight import check_arguments, check_prompts

check_trl()

SFT = "sft_rows"  # marks a micro-batch of demonstrations


class HybridTrainer(MergedCheckpointsMixin):
    """Trains one model, with one optimizer and one schedule, on demonstrations and on rewards.

    Takes what [`PPOTrainer`] takes, and demonstrations: rows of `train_dataset` that have a `completion` beside their
    `prompt` (or chat `messages`, whose last one it is), or a `sft_dataset` of its own. `args.mode` says how the two are
    mixed (`HybridConfig`).

    A step on demonstrations generates nothing and takes no prompt from the RL dataset, of which every row is visited
    as its sampler says. Its loss is -log pi of the completion's tokens, a mean over those of the accumulation window on
    all processes, at temperature 1, as that of TRL's `SFTTrainer`. Steps on rewards are `PPOTrainer`'s, unchanged.
    Phases, places in both datasets and the buffer come back with a checkpoint.

    Metrics: `sft/loss`, `sft/token_accuracy`, `rl/loss`, `rl/reward`, and `phase/rl`, the share of steps on rewards
    since the last log; with `"joint"` also `sft/mu`, with `"gate"` and `"buffer"` `sft/hard_prompts`, their share.

    Raises:
        ConfigError: `args` is no [`HybridConfig`], or its schedule never comes to one of the two kinds of steps.
        DatasetError: there are no demonstrations where the mode needs them.
    """

    _tag_names = ["trl", "hybrid"]
    _name = "Hybrid"
    _paper = {
        "title": "On-Policy RL Meets Off-Policy Experts: Harmonizing SFT and RL via Dynamic Weighting",
        "id": "2508.11408",
        "citation": textwrap.dedent("""\
            @article{zhang2025chord,
                title  = {{On-Policy RL Meets Off-Policy Experts: Harmonizing SFT and RL via Dynamic Weighting}},
                author = {Zhang, Wenhao and others},
                year   = 2025,
                eprint = {arXiv:2508.11408},
            }"""),
    }

    args: HybridConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: HybridConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *positional: Any,
        sft_dataset: Any = None,
        **keyword: Any,
    ) -> None:
        train_dataset, sft_dataset = as_prompts(train_dataset), as_prompts(sft_dataset)
        args = check_arguments(
            HybridConfig, "Hybrid", model, args, train_dataset, eval_dataset, keyword.get("environment_factory")
        )
        if args.mode in ("gate", "buffer") or sft_dataset is None:
            check_demonstrations(train_dataset, "train_dataset")
        if sft_dataset is not None:
            check_demonstrations(sft_dataset, "sft_dataset")
            check_prompts(sft_dataset, "sft_dataset")
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, *positional, **keyword)
        demonstrations = train_dataset if sft_dataset is None else sft_dataset
        self._demonstrations = [tokenize(row, self._text_tokenizer, args.sft_max_length) for row in demonstrations]
        self._phases: list[Phase] = []
        self._sft_rows: Iterator[Demonstration] = iter(())
        self._rl_batches: Iterator[Any] | None = None
        self._sft_taken = 0  # micro-batches of demonstrations so far
        self._sft_window = torch.tensor(0.0)  # tokens of the demonstrations in this accumulation window, everywhere
        self._beside: list[list[Demonstration]] = []  # joint: the demonstrations of this window's micro-batches
        self._buffer: list[Demonstration] = []  # buffer: of all processes, the same on each
        self._generated_for: list[dict[str, Any]] = []

    # Which step takes which data

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], None]:
        """The micro-batches of the next optimizer step. The iterator of the epoch is left alone: it counts, no more."""
        self._open_data()
        phase = self._next_phase()
        self._enter_phase(phase)
        self._metrics["train"]["phase/rl"].append(float(phase == "rl"))
        if phase == "rl":
            batches, _ = super().get_batch_samples(self._rl_batches, num_batches, device)
            if self.args.mode == "joint":
                self._beside = self._take_demonstrations(num_batches)
            return batches, None
        if self.args.mode == "buffer":
            return [{SFT: rows} for rows in self._empty_buffer(num_batches)], None
        return [{SFT: rows} for rows in self._take_demonstrations(num_batches)], None

    def _open_data(self) -> None:
        if self._rl_batches is not None:
            return
        self._phases = self.args.phases(self.state.max_steps)
        self._rl_batches = endless(self.get_train_dataloader(), skip=self._step)
        taken = self._sft_taken * self._sft_batch_size * self.accelerator.num_processes
        self._sft_rows = itertools.islice(shuffled(self._demonstrations, self.args.seed), taken, None)

    @property
    def _sft_batch_size(self) -> int:
        size: int = self.args.sft_batch_size or self.args.per_device_train_batch_size
        return size

    def _next_phase(self) -> Phase:
        if self.args.mode != "buffer":
            phase: Phase = self._phases[self.state.global_step]
            return phase
        full = self.args.buffer_size or self._buffer_step(self.args.gradient_accumulation_steps)
        between = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        return "sft" if between and len(self._buffer) >= full else "rl"

    def _take_demonstrations(self, num_batches: int) -> list[list[Demonstration]]:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        size = self._sft_batch_size * world
        batches = [list(itertools.islice(self._sft_rows, size))[rank::world] for _ in range(num_batches)]
        self._sft_taken += num_batches
        self._count_window(batches)
        return batches

    def _buffer_step(self, num_batches: int) -> int:
        return self._sft_batch_size * num_batches * int(self.accelerator.num_processes)

    def _empty_buffer(self, num_batches: int) -> list[list[Demonstration]]:
        """This process's part of the oldest demonstrations in the buffer, in micro-batches; none is empty."""
        count = min(self._buffer_step(num_batches), len(self._buffer))
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        batches = [taken[i * world + rank :: num_batches * world] for i in range(num_batches)]
        empty: Demonstration = {"prompt_ids": taken[0]["prompt_ids"], "completion_ids": []}
        self._count_window(batches)
        return [rows or [empty] for rows in batches]

    def _count_window(self, batches: list[list[Demonstration]]) -> None:
        tokens = sum(len(row["completion_ids"]) for rows in batches for row in rows)
        self._sft_window = self.accelerator.gather(torch.tensor(float(tokens), device=self.accelerator.device)).sum()

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if isinstance(generation_batch, dict) and SFT in generation_batch:
            return {SFT: True, **self._collate(generation_batch[SFT])}
        return super()._prepare_inputs(generation_batch)

    def _collate(self, rows: list[Demonstration]) -> dict[str, Tensor]:
        return collate(rows, self._text_tokenizer.pad_token_id, self.accelerator.device)

    @property
    def _text_tokenizer(self) -> Any:
        return getattr(self.processing_class, "tokenizer", self.processing_class)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        rl_steps = self._step
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if isinstance(inputs, dict) and SFT in inputs:
            self._step = rl_steps  # TRL counts by it when to generate
        return loss

    # Rollouts

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._generated_for = inputs
        output = super()._generate_and_score_completions(inputs)
        self._append_metrics({"rl/reward": self._scores.nanmean().item()})
        return output

    def _with_advantages(self, output: dict[str, Any], values: Tensor) -> dict[str, Any]:
        if self.args.rl_loss == "ppo":
            output = super()._with_advantages(output, values)
        else:  # TRL's group advantages stay, and nothing is asked of the values
            nothing = torch.zeros_like(values)
            output |= {
                "old_values": nothing,
                "returns": nothing,
                "value_mask": torch.zeros_like(output["completion_mask"]),
            }
        if self.args.mode in ("gate", "buffer") and self.model.training:
            self._sort_out_hard_prompts(output)
        return output

    def _sort_out_hard_prompts(self, output: dict[str, Any]) -> None:
        """Of prompts that are solved at most `gate` of the time: their demonstration, one for each group."""
        count, group = len(output["completion_ids"]), self.num_generations
        solved = (self._scores >= self.args.solved_threshold).float()  # a NaN is not
        hard_groups = solved.view(-1, group).mean(1) <= self.args.gate
        self._append_metrics({"sft/hard_prompts": hard_groups.float().mean().item()})
        start = self.accelerator.process_index * count
        hard = hard_groups.repeat_interleave(group)[start : start + count]
        first = (torch.arange(start, start + count, device=hard.device) % group) == 0
        chosen = [
            tokenize(row, self._text_tokenizer, self.args.sft_max_length) if mine else None
            for row, mine in zip(self._generated_for, (hard & first).tolist(), strict=True)
        ]
        if self.args.mode == "buffer":
            self._buffer += gather_object([row for row in chosen if row is not None])
            return
        keep = (~hard).to(output["advantages"].dtype)
        output["advantages"] = output["advantages"] * (keep if output["advantages"].dim() == 1 else keep.unsqueeze(1))
        output["value_mask"] = output["value_mask"] * (~hard).unsqueeze(1)
        pad = [self._text_tokenizer.pad_token_id]
        empty: Demonstration = {"prompt_ids": pad, "completion_ids": pad}
        demonstrations = self._collate([row or empty for row in chosen])
        demonstrations["completion_mask"] *= torch.tensor([[row is not None] for row in chosen], device=hard.device)
        output |= {f"demonstration_{name}": tensor for name, tensor in demonstrations.items()}
        tokens = self.accelerator.gather(demonstrations["completion_mask"].sum()).sum()
        output["num_demonstration_tokens"] = tokens

    # Loss

    def _rows_with_gradient(self, rows: dict[str, Any]) -> Tensor:
        found = super()._rows_with_gradient(rows)
        demonstrated = rows.get("demonstration_completion_mask")
        return found if demonstrated is None else found | demonstrated.bool().any(1)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if SFT in inputs:
            return self._sft_loss(model, inputs, self._sft_window / self.accelerator.num_processes)
        loss = super()._compute_loss(model, inputs)
        accumulation = self.current_gradient_accumulation_steps if self.model.training else 1
        self._append_metrics({"rl/loss": self.accelerator.gather(loss.detach()).mean().item() * accumulation})
        if self.args.mode == "joint" and self.model.training:
            mu = self.args.mu(self.state.global_step / max(self.state.max_steps - 1, 1))
            self._append_metrics({"sft/mu": mu})
            rows = self._collate(self._beside.pop(0))
            return (1.0 - mu) * loss + mu * self._sft_loss(
                model, rows, self._sft_window / self.accelerator.num_processes
            )
        if "num_demonstration_tokens" in inputs:
            rows = {name: inputs[f"demonstration_{name}"] for name in _DEMONSTRATION}
            loss = loss + self.args.sft_coef * self._sft_loss(
                model, rows, self._window(inputs["num_demonstration_tokens"])
            )
        return loss

    def _sft_loss(self, model: Any, inputs: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """-log pi of the completions' tokens, added up and divided by `tokens`."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        mask, length = inputs["completion_mask"].bool(), inputs["completion_ids"].size(1)
        # Values take part, with a weight of 0: under DDP every parameter does, in every backward.
        with self.accelerator.autocast(), self.value_function.recording(length):
            output = model(input_ids=ids, attention_mask=attention, logits_to_keep=length + 1, use_cache=False)
        logits = output.logits[:, -length - 1 : -1].float()
        targets = inputs["completion_ids"]
        per_token = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        if self.args.sft_token_weighting:
            probability = torch.exp(-per_token.detach())
            per_token = per_token * probability * (1.0 - probability)
        loss = torch.where(mask, per_token, 0.0).sum() / tokens.clamp(min=1.0)
        self._log_sft(loss, logits, targets, mask)
        return loss

    @torch.no_grad()
    def _log_sft(self, loss: Tensor, logits: Tensor, targets: Tensor, mask: Tensor) -> None:
        right = ((logits.argmax(-1) == targets) & mask).sum()
        accumulation = self.current_gradient_accumulation_steps if self.model.training else 1
        sums = torch.stack([loss.detach() * accumulation, torch.ones_like(loss), right.float(), mask.sum().float()])
        total, processes, correct, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._append_metrics({"sft/loss": total / processes})
        if count:
            self._append_metrics({"sft/token_accuracy": correct / count})

    # Checkpoints

    def _data_state(self) -> dict[str, Any]:
        return {"sft_taken": self._sft_taken, "buffer": self._buffer}

    def _load_data_state(self, state: dict[str, Any]) -> None:
        if "sft_taken" not in state:
            raise ConfigError("this checkpoint is not one of HybridTrainer's: start without resume_from_checkpoint")
        self._sft_taken, self._buffer = state["sft_taken"], state["buffer"]


_DEMONSTRATION = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
