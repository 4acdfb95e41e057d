"""What `PPOTrainer` logs, under the names of TRL 1.12's where it has them."""

import math
from typing import Any

import torch
from torch import Tensor

from trl_ext.losses import masked_sum, masked_var
from trl_ext.trainers.ppo_config import PPOConfig
from trl_ext.trainers.rollouts import RolloutsMixin
from trl_ext.trainers.rows import loss_mask


class PPOMetricsMixin(RolloutsMixin):
    """Between `PPOTrainer` and its rollouts. Every number is over the rows of all processes."""

    args: PPOConfig

    def _log_objective(self, scores: Tensor, mask: Tensor, logps: Tensor, kl: Tensor | None, ended: Tensor) -> None:
        zero = torch.zeros_like(logps)
        kl = zero if kl is None else kl
        rows = (~scores.isnan()).sum().clamp(min=0).to(scores.dtype)
        sums = [masked_sum(kl, mask), masked_sum(-logps, mask), scores.nansum(), ended.sum().to(scores.dtype), rows]
        totals = self.accelerator.reduce(torch.stack(sums), reduction="sum")
        mean_kl, entropy, score, num_eos, _ = (totals / totals[-1].clamp(min=1)).tolist()
        self._append_metrics(
            {
                "objective/kl": mean_kl,
                "objective/entropy": entropy,
                "objective/non_score_reward": -(self.args.kl_coef or 0.0) * mean_kl,
                "objective/rlhf_reward": score - (self.args.kl_coef or 0.0) * mean_kl,
                "objective/scores": score,
                "val/num_eos_tokens": num_eos * totals[-1].item(),
            }
        )

    def _log_explained_variance(self, values: Tensor, returns: Tensor, mask: Tensor) -> None:
        of_returns = masked_var(returns, mask, across_processes=True)
        of_errors = masked_var(returns - values, mask, across_processes=True)
        explained = torch.where(of_returns > 0, 1.0 - of_errors / of_returns, 0.0)
        self._append_metrics({"val/explained_variance": explained.item()})

    def _show_advantages(self, advantages: Tensor, mask: Tensor) -> None:
        """Put each completion's mean advantage where TRL, which knows no other, has logged that of its group."""
        means = masked_sum(advantages, mask, 1) / mask.sum(1).clamp(min=1)
        everywhere = self.accelerator.gather(means).tolist()
        log = self._logs["advantages"]
        for _ in range(min(len(everywhere), len(log))):  # it keeps no more rows than a generation batch has
            log.pop()
        log.extend(everywhere)
        if self.num_generations == 1:  # a group of one has no spread
            self._metrics["train" if self.model.training else "eval"].pop("frac_reward_zero_std", None)

    @torch.no_grad()
    def _log_loss(
        self, policy_loss: Tensor, of_values: Tensor, value_clipped: Tensor, logps: Tensor, inputs: dict[str, Any]
    ) -> None:
        mask = loss_mask(inputs)
        log_ratio = torch.where(mask.bool(), logps - inputs["old_per_token_logps"], 0.0)
        ratio, tokens, held = torch.exp(log_ratio), mask.sum(), inputs["value_mask"].sum()
        accumulation = self.current_gradient_accumulation_steps if self.model.training else 1
        sums = [
            policy_loss.detach() * accumulation,
            of_values.detach() * accumulation,
            torch.ones_like(policy_loss),
            masked_sum(0.5 * log_ratio**2, mask),
            masked_sum(ratio, mask),
            masked_sum(ratio**2, mask),
            tokens,
            value_clipped * held,
            held,
        ]
        totals = self.accelerator.reduce(torch.stack([x.float() for x in sums]), reduction="sum").tolist()
        policy, value, processes, approx_kl, ratios, squares, count, clipped, held_count = totals
        count, held_count = count or math.nan, held_count or math.nan  # which TRL leaves out of its means
        mean_ratio = ratios / count
        self._append_metrics(
            {
                "loss/policy_avg": policy / processes,
                "loss/value_avg": value / processes,
                "policy/approxkl_avg": approx_kl / count,
                "val/ratio": mean_ratio,
                "val/ratio_var": max(squares / count - mean_ratio**2, 0.0),
                "val/clipfrac_avg": clipped / held_count,
            }
        )
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, trls in (("policy/entropy_avg", "entropy"), ("policy/clipfrac_avg", "clip_ratio/region_mean")):
            if metrics.get(trls):
                metrics[name].append(metrics[trls][-1])

    def _append_metrics(self, values: dict[str, float]) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in values.items():
            metrics[name].append(value)
