"""CISPO as a subclass of `GRPOTrainer`: TRL's own `loss_type="cispo"`, its variants as factors on the advantages."""

import math
import textwrap
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor

from trl_ext.losses import cispo_weight, masked_mean, masked_sum
from trl_ext.trainers._trl_contract import check_attributes, check_trl
from trl_ext.trainers.cispo_config import CISPOConfig
from trl_ext.trainers.preflight import check_arguments
from trl_ext.trainers.rollouts import RolloutsMixin
from trl_ext.trainers.rows import loss_mask

check_trl()
logger = get_logger(__name__)


class CISPOTrainer(RolloutsMixin):
    """Trainer for CISPO (MiniMax-M1, arXiv 2506.13585). Takes what [`~trl.GRPOTrainer`] takes.

    The loss is linear in the advantage, L = -(1/N) sum w A log pi with w detached. So a floor on w, the trust-region
    mask, and another normaliser are all factors on A, of shape (B, T), and the rest (KL penalty, entropy bonus, tool
    masks, vLLM correction, MoE loss, metrics) is the inherited `_compute_loss`, called and not copied:

        A' = A * (our weight / TRL's weight) * (our normaliser / TRL's normaliser)

    With the defaults both factors are 1 and the trainer is `GRPOTrainer(loss_type="cispo", epsilon_high=5.0)`, plus
    the metrics `importance_weight/{mean,max}`, `clip_ratio/{low,high}_{positive,negative}` (the share of completion
    tokens whose r lies beyond a bound, by the sign of their advantage) and `clip_ratio/trust_region` (those masked).

    Raises:
        ConfigError: `args` is not a [`CISPOConfig`].
        DatasetError, ModelNotFoundError, OutputDirError: see `trl_ext.trainers.preflight`.
        TrlContractError: the installed TRL lacks a hook; raised when this module is imported.

    Example:

    ```python
    from trl_ext import CISPOConfig, CISPOTrainer

    trainer = CISPOTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        reward_funcs=my_reward,
        args=CISPOConfig(output_dir="out", importance_weight_max=5.0, num_iterations=2),
        train_dataset=dataset,
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "cispo"]
    _name = "CISPO"
    _paper = {
        "title": "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention",
        "id": "2506.13585",
        "citation": textwrap.dedent("""\
            @article{minimax2025minimaxm1,
                title  = {{MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention}},
                author = {MiniMax},
                year   = 2025,
                eprint = {arXiv:2506.13585},
            }"""),
    }

    args: CISPOConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: CISPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *positional: Any,
        **keyword: Any,
    ) -> None:
        args = check_arguments(
            CISPOConfig, "CISPO", model, args, train_dataset, eval_dataset, keyword.get("environment_factory")
        )

        # While set, the next forward is that of the loss: its inputs wait there for these advantages.
        self._awaiting_forward: tuple[dict[str, Any], Tensor] | None = None
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, *positional, **keyword)
        check_attributes(self)
        self._bounds = {
            "importance_weight_min": args.importance_weight_min,
            "importance_weight_max": self.epsilon_high,
            "trust_region_low": args.trust_region_low,
            "trust_region_high": args.trust_region_high,
        }
        self._transforms_weights = (
            args.importance_weight_min > 0.0 or args.trust_region_low is not None or args.trust_region_high is not None
        )
        self._warn_if_on_policy()

    def _warn_if_on_policy(self) -> None:
        generate_every = self.args.steps_per_generation * self.args.num_iterations
        if self.args.gradient_accumulation_steps % generate_every == 0:
            logger.warning(
                "CISPO's clip cannot act: each batch of completions gets one update, so pi = pi_old and every weight "
                "is 1. Set num_iterations > 1, or steps_per_generation > gradient_accumulation_steps."
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.args.loss_aggregation != "token":
            output["advantages"] = output["advantages"] * self._aggregation_scale(output)
        return output

    def _aggregation_scale(self, output: dict[str, Any]) -> Tensor:
        """TRL's normaliser over ours, for each of this process's completions: shape (B,).

        TRL divides by N, the tokens of the whole generation batch. With U units (sequences or prompt groups) that have
        any tokens, a completion whose unit has n tokens is scaled by N / (U n), so that each unit weighs 1 / U.
        """
        lengths = loss_mask(output).sum(1)
        group = 1
        if self.args.loss_aggregation == "prompt":
            group = self.num_generations if self.model.training else self.num_generations_eval
        unit_lengths = self.accelerator.gather(lengths).view(-1, group).sum(1)
        units = (unit_lengths > 0).sum()
        scale: Tensor = output["num_items_in_batch"] / (units * unit_lengths).clamp(min=1)
        start = self.accelerator.process_index * len(lengths)
        return scale.repeat_interleave(group)[start : start + len(lengths)]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        # TRL reads the advantages after its forward, whose log-probabilities the weights need. Until then they are
        # taken away, so that a TRL that read them earlier would fail and not train on the wrong ones.
        without_advantages = {**inputs, "advantages": None}
        self._awaiting_forward = without_advantages, inputs["advantages"]
        try:
            loss: Tensor = super()._compute_loss(model, without_advantages)
            return loss
        finally:
            self._awaiting_forward = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        forward = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._awaiting_forward is not None:
            (inputs, advantages), self._awaiting_forward = self._awaiting_forward, None
            inputs["advantages"] = self._weighted_advantages(inputs, forward[0].detach(), advantages)
        return forward

    def _weighted_advantages(self, inputs: dict[str, Any], per_token_logps: Tensor, advantages: Tensor) -> Tensor:
        """A * our weight / TRL's weight, shape (B, T); the advantages as they came if the weights cannot differ."""
        mask = loss_mask(inputs)
        old_per_token_logps = inputs.get("old_per_token_logps")
        log_ratio = torch.zeros_like(per_token_logps)
        if old_per_token_logps is not None:
            log_ratio = per_token_logps - old_per_token_logps
        if self.importance_sampling_level == "sequence":
            log_ratio = masked_mean(log_ratio, mask, 1).unsqueeze(1)
        ratio = torch.exp(log_ratio)
        column = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
        weight = cispo_weight(ratio, column, **self._bounds)
        self._log_weights(ratio, weight, column, mask)
        if not self._transforms_weights:
            return advantages
        trl_weight = ratio.clamp(max=self.epsilon_high).clamp(min=torch.finfo(ratio.dtype).tiny)
        return column * weight / trl_weight

    def _log_weights(self, ratio: Tensor, weight: Tensor, advantages: Tensor, mask: Tensor) -> None:
        ratio, weight = ratio.expand_as(mask), weight.expand_as(mask)
        high, low = ratio > self._bounds["importance_weight_max"], ratio < self._bounds["importance_weight_min"]
        positive, negative = advantages > 0, advantages < 0
        beyond = {
            "clip_ratio/high_positive": high & positive,
            "clip_ratio/high_negative": high & negative,
            "clip_ratio/low_positive": low & positive,
            "clip_ratio/low_negative": low & negative,
            "clip_ratio/trust_region": (weight == 0) & (ratio > 0),
        }
        counts = (torch.stack([*beyond.values(), torch.ones_like(high)]) & mask.bool()).sum((1, 2)).to(weight.dtype)
        of_weight = masked_sum(weight, mask).unsqueeze(0)
        totals = self.accelerator.reduce(torch.cat([counts[:-1], of_weight, counts[-1:]]), reduction="sum")
        largest = self.accelerator.gather(torch.where(mask.bool(), weight, 0.0).max())
        metrics = self._metrics["train" if self.model.training else "eval"]
        names = [*beyond, "importance_weight/mean"]
        # NaN, which TRL leaves out of its mean over micro-batches, for one without a token that counts
        for name, total in zip(names, (totals[:-1] / totals[-1]).tolist(), strict=True):
            metrics[name].append(total)
        metrics["importance_weight/max"].append(largest.max().item() if totals[-1] else math.nan)
