"""Standalone models during a hybrid run, optionally the average of its last two phases."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.distributed import DistributedBackend

from trl_ext.errors import ConfigError
from trl_ext.trainers.hybrid_config import HybridConfig
from trl_ext.trainers.hybrid_schedule import Phase
from trl_ext.trainers.merging import (
    Weights,
    average,
    merged_state_dict,
    plain_state_dict,
    trained_weights,
    with_weights,
)
from trl_ext.trainers.ppo_trainer import PPOTrainer
from trl_ext.trainers.value_function import NAME

FILE_NAME = "ended_phase.safetensors"


class MergedCheckpointsMixin(PPOTrainer):
    """Between [`HybridTrainer`] and [`PPOTrainer`].

    With `merge_average`, the process that writes keeps what was trained (all weights, or the adapters) as it was at the
    end of the last phase, in main memory and in each checkpoint; a merged model is the average of the models of these
    and of the current weights, one of which is that of the SFT phase and the other of the RL phase.

    Raises:
        ConfigError: the weights are spread over processes in a way that cannot be merged.
    """

    args: HybridConfig

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._phase: Phase | None = None  # of the last step
        self._ended: Weights | None = None  # at the end of the last phase of the other kind
        self._check_merging()

    def _check_merging(self) -> None:
        if self.args.merge_every is None:
            return
        backend, peft = DistributedBackend(self.accelerator), isinstance(self.model, PeftModel)
        if self.args.merge_average is not None and (backend.is_zero3 or backend.is_fsdp):
            raise ConfigError("merge_average: not under ZeRO-3 or FSDP, where each process holds a part of the weights")
        if peft and getattr(self.model.get_base_model(), "is_quantized", False):
            raise ConfigError("merge_every: adapters are not merged into quantized weights; merge after the training")
        if backend.is_fsdp and peft:
            raise ConfigError("merge_every: adapters are not merged under FSDP; merge them after the training")
        if backend.is_zero3 and not peft:
            zero = self.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
            if not zero.get("stage3_gather_16bit_weights_on_model_save"):
                raise ConfigError(
                    "merge_every: under ZeRO-3 it needs stage3_gather_16bit_weights_on_model_save "
                    "(zero3_save_16bit_model in an Accelerate config)"
                )

    def _enter_phase(self, phase: Phase) -> None:
        """Called before each step."""
        if self.args.merge_average is not None and self.args.should_save and self._phase not in (None, phase):
            self._ended = trained_weights(self.accelerator.unwrap_model(self.model))
        self._phase = phase

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        every = self.args.merge_every
        if every is not None and self.state.global_step % every == 0:
            self.save_merged(str(Path(str(self.args.output_dir)) / f"merged-{self.state.global_step}"))

    def save_merged(self, folder: str) -> None:
        """Write a model that `AutoModelForCausalLM` loads by itself: adapters merged, no value function, tokenizer.

        With `merge_average` it is the average, as soon as there has been a step of each kind. To be called on every
        process.
        """
        policy = self.accelerator.unwrap_model(self.model)
        weights = self._plain_weights(policy)
        if not self.args.should_save:
            return
        if self._ended is not None:
            with with_weights(policy, self._ended):
                ended = plain_state_dict(policy)
            sft, rl = (ended, weights) if self._phase == "rl" else (weights, ended)
            weights = average(sft, rl, float(self.args.merge_average or 0.0))
        base = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        base.save_pretrained(folder, state_dict=weights)
        self.processing_class.save_pretrained(folder)

    def _plain_weights(self, policy: Any) -> dict[str, Tensor]:
        """The current weights, on the process that writes."""
        if isinstance(policy, PeftModel):
            with DistributedBackend(self.accelerator).gather_params(list(policy.parameters())):
                return merged_state_dict(policy) if self.args.should_save else {}
        everything = self.accelerator.get_state_dict(self.model_wrapped) or {}  # ZeRO-3: None but on the first process
        return {name: tensor for name, tensor in everything.items() if not name.startswith(f"{NAME}.")}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.merge_average is not None and self.args.should_save:
            checkpoint = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            save_file(self._ended or {}, checkpoint / FILE_NAME, metadata={"phase": str(self._phase)})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = Path(checkpoint or "") / FILE_NAME
        if checkpoint is None or self.args.merge_average is None or not path.is_file():
            return
        with safe_open(path, "pt") as file:
            self._phase = file.metadata()["phase"]
        self._ended = load_file(path) or None
