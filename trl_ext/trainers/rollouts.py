"""What our trainers add around TRL's rollouts, whatever the loss: they survive a resume, and bad ones are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor

from trl_ext.errors import DatasetError
from trl_ext.trainers.guarded_rewards import GuardedRewardsMixin
from trl_ext.trainers.head_tiles import HeadTilesMixin
from trl_ext.trainers.lean_update import LeanUpdateMixin
from trl_ext.trainers.optimizing import OptimizingMixin
from trl_ext.trainers.resumable import ResumableMixin

logger = get_logger(__name__)

_OF_ROLLOUTS = (
    "per_device_train_batch_size",
    "steps_per_generation",
    "num_iterations",
    "num_generations",
    "beta",
    "use_vllm",
    "vllm_importance_sampling_correction",
    "loss_aggregation",
    "kl_coef",
    "positive_lm_coef",
    "mode",
    "rl_loss",
)


class RolloutsMixin(ResumableMixin, GuardedRewardsMixin, LeanUpdateMixin, OptimizingMixin, HeadTilesMixin):
    """Between a trainer of ours and `GRPOTrainer`.

    TRL keeps a batch of completions for several optimizer steps, but not in its checkpoints: a run that is resumed
    between two generations trains on other completions than the run that was never stopped. Here each process saves its
    completions with the checkpoint.

    For `trl_ext.agents.environment_rollout`, which plays an episode for each row: `rollout_rows` are the dataset's rows
    while a rollout function runs (TRL gives it their prompts only), and an episode that failed has no reward, whatever
    the reward functions say.

    Raises:
        DatasetError: a prompt leaves no room for a completion in the model's context.
    """

    rollout_func: Callable[..., dict[str, Any]] | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.rollout_func is not None:
            self.rollout_func = _without_empty_completions(self.rollout_func)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.rollout_rows = inputs
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return output

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Tensor:
        per_function: Tensor = super()._calculate_rewards(inputs, *args, **kwargs)
        if self.rollout_func is None:
            return per_function
        failed = [getattr(row.get("trajectory"), "failure", None) is not None for row in inputs]
        everywhere = self.accelerator.gather(torch.tensor(failed, device=per_function.device))
        return per_function.masked_fill(everywhere.unsqueeze(1), torch.nan)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        tokenized = super()._tokenize_prompts(prompts)
        # learned positions end there; rotary ones go on, into lengths that the model never saw
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(map(len, tokenized[0]))
        if context is not None and longest + self.max_completion_length > context:
            raise DatasetError(
                f"a prompt has {longest} tokens, which with max_completion_length = {self.max_completion_length} is "
                f"more than the {context} that the model takes: drop such prompts or shorten the completions"
            )
        return tokenized

    def _save_process_state(self, checkpoint: Path) -> None:
        used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        rollouts = None if used_up else self._buffered_inputs
        state = {"processes": self.accelerator.num_processes, "step": self._step, "rollouts": rollouts}
        state["made_for"] = self._rollouts_fit()
        state["metrics"] = dict(self._metrics["train"])  # since the last log
        torch.save(state | self._data_state(), self._rollouts_path(checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = self._rollouts_path(Path(checkpoint))
        device = self.accelerator.device
        place = "cpu" if device.type == "cpu" else device  # on several processes it is cpu:0, which torch.load refuses
        state = torch.load(path, map_location=place) if path.is_file() else {}
        if state.get("processes") != self.accelerator.num_processes:
            logger.warning("%s is missing or of another number of processes: new completions are sampled", path)
            return
        self._step, self._buffered_inputs = state.pop("step"), state.pop("rollouts")
        fits = self._rollouts_fit()
        if state.pop("made_for", fits) != fits:
            logger.warning("%s was made with other options (of %s): new completions are sampled", path, ", ".join(fits))
            generate_every = self.args.steps_per_generation * self.num_iterations
            self._step, self._buffered_inputs = -(-self._step // generate_every) * generate_every, None
        self._metrics["train"].update(state.pop("metrics", {}))
        self._load_data_state(state)

    def _rollouts_fit(self) -> dict[str, str]:
        """The options that say how completions in use are cut and what is computed of them beforehand."""
        return {name: str(getattr(self.args, name)) for name in _OF_ROLLOUTS if hasattr(self.args, name)}

    def _data_state(self) -> dict[str, Any]:
        """What else this process has to keep to go on with the same data."""
        return {}

    def _load_data_state(self, state: dict[str, Any]) -> None:
        """Take back what `_data_state` gave."""

    def _rollouts_path(self, checkpoint: Path) -> Path:
        return checkpoint / f"rollouts_{self.accelerator.process_index}.pt"


def _without_empty_completions(rollout_func: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """TRL looks at the last token of each completion. One that has none gets a token that does not count."""

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        output = rollout_func(prompts, trainer)
        if all(output["completion_ids"]):
            return output
        output = {key: list(value) if isinstance(value, list) else value for key, value in output.items()}
        output.setdefault("env_mask", [[1] * len(ids) for ids in output["completion_ids"]])
        for row, ids in enumerate(output["completion_ids"]):
            if not ids:
                output["completion_ids"][row] = [trainer.processing_class.pad_token_id]
                output["env_mask"][row] = [0]
                if output.get("logprobs") is not None:
                    output["logprobs"][row] = [0.0]
        return output

    return rollout
