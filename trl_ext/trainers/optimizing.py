"""The optimizer and the scheduler that a config names, made where the Trainer makes its own."""

from typing import Any

from torch.optim import Optimizer
from trl import GRPOTrainer

from trl_ext.errors import ConfigError
from trl_ext.trainers.optimizing_config import OptimizingConfig


class OptimizingMixin(GRPOTrainer):
    """Between a trainer of ours and `GRPOTrainer`.

    `optimizers=` holds the parameters that the model had before the trainer added some (adapters, a value function),
    and under DeepSpeed the Trainer drops it. `create_optimizer` and `create_scheduler` see the model as it is trained,
    under DeepSpeed and FSDP too.

    Raises:
        ConfigError: an optimizer or a scheduler comes both from the config and as an object.
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
        return super().create_scheduler(num_training_steps, optimizer)
