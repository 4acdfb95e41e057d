"""PPO as a subclass of `GRPOTrainer`: values from its forward, advantages (B, T) into its loss, a value loss added."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trl_ext.errors import ConfigError
from trl_ext.losses import (
    generalized_advantage_estimate,
    kl_estimate,
    length_adaptive_lambda,
    masked_sum,
    masked_whiten,
    token_rewards,
    value_clip_fraction,
    value_loss,
)
from trl_ext.trainers._trl_contract import MULTIMODAL, check_attributes, check_trl
from trl_ext.trainers.ppo_config import PPOConfig
from trl_ext.trainers.ppo_metrics import PPOMetricsMixin
from trl_ext.trainers.preflight import check_arguments
from trl_ext.trainers.rows import loss_mask
from trl_ext.trainers.value_function import NAME, SeparateCritic, SharedValueHead, ValueFunction, check_critic

check_trl()


class PPOTrainer(PPOMetricsMixin):
    """Trainer for PPO (arXiv 1707.06347, as in "The N Implementation Details of RLHF with PPO").

    Takes what [`~trl.GRPOTrainer`] takes: reward callables, text and chat prompts, vLLM, tools, PEFT, DeepSpeed.
    Three things are added to it:

    - a value function, whose values come out of the forward that the log-probabilities need (`value_function.py`);
    - after the rollout, rewards per token (the score on the last token that the model wrote, a KL penalty on each), GAE
      over these tokens, and the advantages (B, T) in the place of GRPO's. A reward function may say that its scores are
      sums over tokens: its attribute `token_column` names the column that has them, a list as long as the completion
      for each row (`trl_ext.agents.environment_reward`: turn by turn). They then stay on those tokens;
    - in the loss, `vf_coef` times the clipped value loss, a mean over the tokens of the accumulation window on all
      processes. The policy's part is the inherited `_compute_loss`: PPO's clip with `loss_type="dapo"` (the default).

    A completion that no reward scores, and one without a token of the model's own, moves neither the policy nor the
    values. `save_model` writes the policy as any other trainer does, and the value function beside it
    (`value_head.safetensors` or the folder `value_model`); `trainer.model.save_pretrained` would write both into one.

    Args:
        value_model: a critic in the place of `args.value_model`: a sequence-classification model with one output, or
            the checkpoint of one.

    Raises:
        ConfigError: `args` is no [`PPOConfig`], or the critic does not fit the policy.
        DatasetError, ModelNotFoundError, OutputDirError: see `trl_ext.trainers.preflight`.
        TrlContractError: the installed TRL lacks a hook; raised when this module is imported.

    Example:

    ```python
    from trl_ext import PPOConfig, PPOTrainer

    trainer = PPOTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        reward_funcs=my_reward,
        args=PPOConfig(output_dir="out", num_ppo_epochs=4, num_mini_batches=2),
        train_dataset=dataset,
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "ppo"]
    _name = "PPO"
    _paper = {
        "title": "Fine-Tuning Language Models from Human Preferences",
        "id": "1909.08593",
        "citation": textwrap.dedent("""\
            @article{ziegler2019finetuning,
                title  = {{Fine-Tuning Language Models from Human Preferences}},
                author = {Daniel M. Ziegler and Nisan Stiennon and Jeffrey Wu and Tom B. Brown and Alec Radford and Dario Amodei and Paul Christiano and Geoffrey Irving},
                year   = 2019,
                eprint = {arXiv:1909.08593},
            }"""),  # noqa: E501
    }

    args: PPOConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *positional: Any,
        value_model: Any = None,
        **keyword: Any,
    ) -> None:
        args = check_arguments(
            PPOConfig, "PPO", model, args, train_dataset, eval_dataset, keyword.get("environment_factory")
        )
        name = model if isinstance(model, str) else model.config.name_or_path
        self._scores = torch.empty(0)
        self._token_scores: list[Tensor] | None = None
        # While true, the next forward of the policy also gives values, which wait in `_forward` with its log-probs.
        self._wants_values = False
        self._forward: tuple[Tensor, Tensor] | None = None
        in_loss, args.beta = args.beta, args.beta or args.kl_coef  # TRL makes a reference model where beta is not 0
        try:
            super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, *positional, **keyword)
        finally:
            args.beta = in_loss
        self.beta = in_loss
        check_attributes(self)
        self.value_function = self._make_value_function(value_model, name)
        self.value_function.attach(self.model)
        if self.use_vllm:
            self._keep_from_vllm()

    def _make_value_function(self, value_model: Any, policy_name: str) -> ValueFunction:
        if value_model is None and self.args.value_model == "shared":
            return SharedValueHead(self.model)
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        if isinstance(value_model, nn.Module):
            function, checkpoint = SeparateCritic(value_model), None
        else:
            checkpoint = value_model or self.args.value_model_name_or_path or policy_name
            options = {"dtype": "float32", **(self.args.model_init_kwargs or {})}
            function = SeparateCritic.from_pretrained(checkpoint, **options)
        check_critic(function.critic, tokenizer, checkpoint)
        if self.args.gradient_checkpointing:
            function.critic.gradient_checkpointing_enable(self.args.gradient_checkpointing_kwargs)
        return function.to(self.model.device)

    def _keep_from_vllm(self) -> None:
        """vLLM is given every parameter of the policy and knows none of the value function's."""
        sync_weights = self.vllm_generation.sync_weights

        def sync_policy_weights() -> None:
            with self._without_value_function():
                sync_weights()

        self.vllm_generation.sync_weights = sync_policy_weights

    @contextmanager
    def _without_value_function(self) -> Iterator[None]:
        modules = self.accelerator.unwrap_model(self.model)._modules
        function = modules.pop(NAME)
        try:
            yield
        finally:
            modules[NAME] = function

    # Rollouts

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Tensor:
        per_function = super()._calculate_rewards(inputs, *args, **kwargs)
        scores = (per_function * self.reward_weights.to(per_function.device)).nansum(1)
        self._scores = scores.masked_fill(per_function.isnan().all(1), torch.nan)  # of all processes
        self._token_scores = self._scores_on_tokens(inputs)
        return per_function

    def _scores_on_tokens(self, inputs: list[dict[str, Any]]) -> list[Tensor] | None:
        """For each row of this process the parts of its score that have a token of their own, weighted; None: none."""
        columns = [getattr(function, "token_column", None) for function in self.reward_funcs]
        weighted = [(name, w) for name, w in zip(columns, self.reward_weights, strict=True) if name in inputs[0]]
        if not weighted:
            return None
        return [torch.stack([w * torch.tensor(row[name]) for name, w in weighted]).sum(0) for row in inputs]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.beta, self._wants_values = self.args.beta or self.args.kl_coef, True
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self.beta, self._wants_values = self.args.beta, False
        if "old_per_token_logps" in output:  # then the first forward was the one for them
            assert self._forward is not None
            values = self._forward[1]
        else:
            output["old_per_token_logps"], values = self._rollout_forward(output)
        self._forward = None
        return self._with_advantages(output, values)

    @torch.no_grad()
    def _rollout_forward(self, output: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values, both (B, T), where TRL needs no old log-probabilities."""
        self._wants_values = True
        training = self.model.training
        self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([output["prompt_ids"], output["completion_ids"]], 1),
            torch.cat([output["prompt_mask"], output["completion_mask"]], 1),
            output["completion_ids"].size(1),
            self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size,
            **{name: output[name] for name in MULTIMODAL if name in output},
        )
        assert self._forward is not None
        return self._forward

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        logps, entropies, aux_loss, *values = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if values:
            self._wants_values, self._forward = False, (logps, *values)
        return logps, entropies, aux_loss

    def _forward_rows(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **kwargs: Any
    ) -> Any:
        inputs = model, input_ids, attention_mask, logits_to_keep
        if not self._wants_values or model is self.ref_model:
            return super()._forward_rows(*inputs, **kwargs)
        with self.value_function.recording(logits_to_keep, detach_trunk=self._is_warming_up) as recorded:
            forward = super()._forward_rows(*inputs, **kwargs)
        return *forward, torch.cat(recorded)

    @property
    def _is_warming_up(self) -> bool:
        return bool(self.state.global_step < self.args.value_warmup_steps)

    @torch.no_grad()
    def _with_advantages(self, output: dict[str, Any], values: Tensor) -> dict[str, Any]:
        """The rollout with PPO's advantages, returns and values, all (B, T), for the rows of this process."""
        args, mask = self.args, loss_mask(output)
        start = self.accelerator.process_index * len(mask)
        scores = self._scores[start : start + len(mask)].to(values.dtype)
        counts = mask.bool() & ~scores.isnan().unsqueeze(1)  # tokens of completions that have a score
        ended = (torch.isin(output["completion_ids"], self._eos_tokens()) & mask.bool()).any(1)
        penalized = scores - (args.missing_eos_penalty or 0.0) * (~ended)

        old_per_token_logps, kl = output["old_per_token_logps"], None
        if args.kl_coef:
            kl = kl_estimate(old_per_token_logps, output.pop("ref_per_token_logps"), args.kl_estimator)
        rewards = token_rewards(penalized, counts, kl, args.kl_coef or 0.0, self._placed_scores(values))
        self._log_objective(scores, counts, old_per_token_logps, kl, ended)
        if args.whiten_rewards:
            rewards = masked_whiten(rewards, counts, shift_mean=False, across_processes=True)

        lam = args.lam if args.lam_length_alpha is None else length_adaptive_lambda(counts, args.lam_length_alpha)
        advantages, returns = generalized_advantage_estimate(rewards, values, counts, gamma=args.gamma, lam=lam)
        if args.lam_value is not None:
            _, returns = generalized_advantage_estimate(rewards, values, counts, gamma=args.gamma, lam=args.lam_value)
        if args.whiten_advantages:
            advantages = masked_whiten(advantages, counts, across_processes=True)
        self._log_explained_variance(values, returns, counts)
        self._show_advantages(advantages, counts)

        output |= {"advantages": advantages, "returns": returns, "old_values": values, "value_mask": counts.to(mask)}
        if args.positive_lm_coef:
            positive = counts & (scores >= args.positive_threshold).unsqueeze(1)
            output["positive_mask"] = positive.to(mask)
            output["num_positive_in_batch"] = self.accelerator.gather(positive.sum()).sum()
        return output

    def _placed_scores(self, values: Tensor) -> Tensor | None:
        if self._token_scores is None:
            return None
        placed = torch.zeros_like(values)
        for row, scores in zip(placed, self._token_scores, strict=True):
            row[: len(scores)] = scores
        return placed

    def _eos_tokens(self) -> Tensor:
        return torch.tensor(self.eos_token_ids, device=self.accelerator.device)

    # Loss

    def _rows_with_gradient(self, rows: dict[str, Any]) -> Tensor:
        found = super()._rows_with_gradient(rows)
        if self.args.vf_coef:
            found = found | rows["value_mask"].bool().any(1)
        return found | rows["positive_mask"].bool().any(1) if "positive_mask" in rows else found

    def _configs(self) -> list[Any]:
        critic = getattr(self.value_function, "critic", None)
        return super()._configs() + ([] if critic is None else [critic.config])

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._wants_values = True
        try:
            policy_loss: Tensor = super()._compute_loss(model, inputs)
        finally:
            self._wants_values = False
        assert self._forward is not None
        (per_token_logps, values), self._forward = self._forward, None
        clip = self.args.cliprange_value if self.args.cliprange_value > 0 else None
        targets = values, inputs["old_values"], inputs["returns"], inputs["value_mask"]
        window = self._window(inputs["num_items_in_batch"])
        of_values = value_loss(*targets, cliprange_value=clip, normalizer=window)
        loss = (0.0 if self._is_warming_up else 1.0) * policy_loss + self.args.vf_coef * of_values
        if self.args.positive_lm_coef and not self._is_warming_up:
            tokens = self._window(inputs["num_positive_in_batch"])
            loss = loss - self.args.positive_lm_coef * masked_sum(per_token_logps, inputs["positive_mask"]) / tokens
        value_clipped = value_clip_fraction(*targets, cliprange_value=clip)
        self._log_loss(policy_loss, of_values, value_clipped, per_token_logps, inputs)
        return loss

    def _window(self, tokens: Tensor) -> Tensor:
        """A count over the generation batch of all processes as that of one accumulation window, per process.

        Losses are averaged over processes and added up over the window: divided by this they are a mean per token. TRL
        has the same for `loss_type="dapo"`.
        """
        window: Tensor = tokens.clamp(min=1.0) / self.accelerator.num_processes
        if self.model.training:
            window = window * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return window

    # Optimizer and checkpoints

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        own = {id(parameter) for parameter in self.value_function.parameters()}
        if not fresh and not own & {id(p) for group in optimizer.param_groups for p in group["params"]}:
            raise ConfigError(
                "optimizers: this one was made before the trainer and lacks the value function, which would not train; "
                "set trainer.optimizer and trainer.lr_scheduler, made from trainer.model, before trainer.train()"
            )
        if not fresh or self.args.value_learning_rate is None:
            return optimizer
        for group in list(optimizer.param_groups):
            moved = [parameter for parameter in group["params"] if id(parameter) in own]
            if moved:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
                optimizer.add_param_group({**group, "params": moved, "lr": self.args.value_learning_rate})
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if state_dict is None:
            state_dict = self.model.state_dict()
        prefix = f"{NAME}."
        policy = {name: tensor for name, tensor in state_dict.items() if not name.startswith(prefix)}
        super()._save(output_dir, state_dict=policy)
        values = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        if self.args.should_save and values:  # none where ZeRO-3 is told not to gather them
            self.value_function.save(Path(output_dir or str(self.args.output_dir)), values)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self._without_value_function():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.value_function.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:  # they load what they saved, the value function included
            super()._load_best_model()
            return
        with self._without_value_function():
            super()._load_best_model()
        self.value_function.load(Path(self.state.best_model_checkpoint))
