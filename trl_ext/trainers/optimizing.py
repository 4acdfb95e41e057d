"""The optimizer and the scheduler that a config names, made where the Trainer makes its own."""

from typing import Any

from torch.optim import Optimizer
from trl import GRPOTrainer

from trl_ext.errors import CheckpointError, ConfigError
from trl_ext.trainers.optimizing_config import OptimizingConfig

_LENGTHS = ("T_max", "T_0", "total_steps", "step_size", "total_size", "milestones", "gamma")


class OptimizingMixin(GRPOTrainer):
    """Between a trainer of ours and `GRPOTrainer`.

    `optimizers=` holds the parameters that the model had before the trainer added some (adapters, a value function),
    and under DeepSpeed the Trainer drops it. `create_optimizer` and `create_scheduler` see the model as it is trained,
    under DeepSpeed and FSDP too.

    Raises:
        ConfigError: an optimizer or a scheduler comes both from the config and as an object, or a scheduler ends before
            the run does.
        CheckpointError: the checkpoint's scheduler was made for a run of another length, and cannot be made for this.
    """

    args: OptimizingConfig
    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        objects = {"optimizer": self.optimizer or self.optimizer_cls_and_kwargs, "scheduler": self.lr_scheduler}
        for part, given in objects.items():
            if getattr(self.args, part) is not None and given is not None:
                raise ConfigError(f"args.{part} = {getattr(self.args, part)!r}, and an object too: give one of them")

    def create_optimizer(self, model: Any = None) -> Optimizer:
        if self.optimizer is None and self.args.optimizer is not None:
            self.optimizer = self.args.build_optimizer(self.model if model is None else model)
        optimizer: Optimizer = super().create_optimizer(model)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        if self.lr_scheduler is None and self.args.scheduler is not None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = self.args.build_scheduler(optimizer, num_training_steps)
            self._created_lr_scheduler = True  # so that another train() makes a new one
            total = getattr(self.lr_scheduler, "total_steps", None)
            if total is not None and total < num_training_steps:  # it would raise in the middle of the run
                raise ConfigError(
                    f"scheduler = {self.args.scheduler!r} ends after {total} steps, the run has {num_training_steps}"
                )
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        fitted = _lengths(self.lr_scheduler.state_dict()) if checkpoint is not None else {}
        super()._load_optimizer_and_scheduler(checkpoint)
        for name, length in fitted.items():
            loaded = _lengths(self.lr_scheduler.state_dict()).get(name, length)
            if loaded != length:
                raise CheckpointError(
                    f"{checkpoint}: its scheduler was made with {name} = {loaded}, that of this run has {length}: "
                    "train for as many steps as before, put lengths into the spec that stay the same, or take one that "
                    "fits itself to the new length (linear, cosine, ...)"
                )


def _lengths(state: dict[str, Any]) -> dict[str, Any]:
    """What torch's schedulers have of the length of a run: they keep it in their state and load it over their own."""
    found = {name: state[name] for name in _LENGTHS if name in state}
    for after_warmup in state.get("_schedulers", []):
        found |= _lengths(after_warmup)
    return found
