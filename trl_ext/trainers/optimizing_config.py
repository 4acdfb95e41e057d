"""The optimizer and the scheduler by name in the config of each of our trainers."""

import warnings
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from trl import GRPOConfig

from trl_ext.errors import ConfigError
from trl_ext.optim.optimizers import make_optimizer
from trl_ext.optim.options import parse_spec
from trl_ext.optim.schedulers import make_scheduler, steps_at_evaluations

# What TrainingArguments has for the same thing, where a spec would leave it without effect: its own names for it.
_OF_OPTIMIZER = {
    "optim": "name",
    "optim_args": "options",
    "optim_target_modules": "target_modules",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
}
_OF_SCHEDULER = {"lr_scheduler_type": "name", "lr_scheduler_kwargs": "options"}
_MANY_STEPS = 10**9


@dataclass
class OptimizingConfig(GRPOConfig):
    r"""[`~trl.GRPOConfig`], with what [`make_optimizer`] and [`make_scheduler`] take (docs/optim.md).

    Parameters:
        optimizer (`str` or `dict`, *optional*):
            A name, or a dict with a `name` and options; JSON of one from the command line. What it does not say is
            `learning_rate` and `weight_decay`. `optim` if unset.
        scheduler (`str` or `dict`, *optional*):
            The same for the learning rate's schedule. What it does not say is `warmup_steps` and the length of the run.
            `lr_scheduler_type` if unset.

    Raises:
        ConfigError: an unknown name or option, a value out of its range, or two options for one thing.
        MissingExtraError: the package that has the optimizer is not installed.
    """

    _VALID_DICT_FIELDS = GRPOConfig._VALID_DICT_FIELDS + ["optimizer", "scheduler"]

    optimizer: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'An optimizer of docs/optim.md: a name, or \'{"name": "adamw_8bit", "weight_decay": 0.1}\'. '
            "--learning_rate and --weight_decay are its defaults. Unset: --optim."
        },
    )
    scheduler: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'A scheduler of docs/optim.md: a name, or \'{"name": "cosineannealing", "eta_min": 1e-7}\'. '
            "--warmup_steps is its default. Unset: --lr_scheduler_type."
        },
    )

    def __post_init__(self) -> None:
        for part, others in (("optimizer", _OF_OPTIMIZER), ("scheduler", _OF_SCHEDULER)):
            self._refuse_contradictions(part, others)
        super().__post_init__()
        self._try_specs()

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimizer of the spec, over what `model` trains."""
        assert self.optimizer is not None
        return make_optimizer(
            model, self.optimizer, unless_given={"lr": self.learning_rate, "weight_decay": self.weight_decay}
        )

    def build_scheduler(self, optimizer: Optimizer, num_training_steps: int) -> Any:
        """The scheduler of the spec, for a run of that many steps."""
        assert self.scheduler is not None
        warmup = {"warmup_steps": self.get_warmup_steps(num_training_steps)}
        return make_scheduler(
            optimizer, self.scheduler, unless_given={"num_training_steps": num_training_steps, **warmup}
        )

    def _refuse_contradictions(self, part: str, others: dict[str, str]) -> None:
        spec = getattr(self, part)
        if spec is None:
            return
        name, _ = parse_spec(spec, part)
        defaults = {known.name: known.default for known in fields(self)}
        for other, key in others.items():
            value, default = getattr(self, other), defaults[other]
            if value != default and not (key == "name" and value == name):
                value, default = (getattr(x, "value", x) for x in (value, default))
                raise ConfigError(
                    f"{part} = {spec!r} and {other} = {value!r} are about one thing: put the {key} into {part}, and "
                    f"leave {other} as it is by default ({default!r})"
                )

    def _try_specs(self) -> None:
        """Make both once, for a model of one weight: what is wrong is told now and not when the training begins."""
        trial: Optimizer | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = nn.Sequential(nn.Linear(1, 1))
            if self.optimizer is not None and not parse_spec(self.optimizer, "optimizer")[0].startswith(
                ("galore", "apollo")  # they look for their modules in the model
            ):
                trial = self.build_optimizer(model)
            if self.scheduler is not None:
                trial = trial or AdamW(model.parameters(), self.learning_rate)
                self.build_scheduler(trial, self.max_steps if self.max_steps > 0 else _MANY_STEPS)
        if self.scheduler is not None and steps_at_evaluations(self.scheduler):
            for name, unset in (("eval_strategy", "no"), ("metric_for_best_model", None)):
                if getattr(self, name) == unset:
                    raise ConfigError(
                        f"scheduler = {self.scheduler!r} is stepped at evaluations, with metric_for_best_model: "
                        f"set {name} ({unset!r})"
                    )
