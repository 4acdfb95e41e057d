"""Learning-rate schedulers by name: torch's and transformers', all with warm-up. None is written here."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from torch import nn
from torch.optim import Optimizer, lr_scheduler

from trl_ext.errors import ConfigError, choices
from trl_ext.optim.deepspeed import refuse_if_deepspeed_has_its_own, refuse_optimizers_argument
from trl_ext.optim.optimizers import make_optimizer
from trl_ext.optim.options import Spec, check_options, errors_of, parameters_of, parse_spec, whole

_TORCH: dict[str, Any] = {
    "step": lr_scheduler.StepLR,
    "multistep": lr_scheduler.MultiStepLR,
    "exponential": lr_scheduler.ExponentialLR,
    "cosineannealing": lr_scheduler.CosineAnnealingLR,
    "cosineannealing_warm_restarts": lr_scheduler.CosineAnnealingWarmRestarts,
    "onecycle": lr_scheduler.OneCycleLR,
    "cyclic": lr_scheduler.CyclicLR,
    "lambda": lr_scheduler.LambdaLR,
}
_ALIASES = {"none": "constant", "poly": "polynomial", "reduce_on_plateau": "reduce_lr_on_plateau"}
# Stepped with a metric, at evaluations.
_BY_METRIC: dict[str, str] = {"reduce_lr_on_plateau": "ReduceLROnPlateau", "greedy": "GreedyLR"}
_NEEDS_NO_TOTAL = ("constant", "constant_with_warmup", "inverse_sqrt", *_BY_METRIC)
# An option that makes the number of steps of the run unnecessary.
_IN_PLACE_OF_TOTAL = {
    "step": "step_size",
    "multistep": "milestones",
    "exponential": "gamma",
    "cosineannealing": "T_max",
    "cosineannealing_warm_restarts": "T_0",
    "cyclic": "step_size_up",
    "lambda": "lr_lambda",
    "warmup_stable_decay": "num_stable_steps",
}

_STEPS = {
    "num_training_steps": None,
    "warmup_steps": None,
    "warmup_ratio": None,
    "steps_per_epoch": None,
    "epochs": None,
}
_SAME_LENGTH = {
    "num_training_steps": ("num_training_steps", "steps_per_epoch", "epochs"),
    "warmup_steps": ("warmup_steps", "warmup_ratio"),
}
_KEYS = {"num_warmup_steps": "warmup_steps"}
_KEYS_OF = {
    "polynomial": {"poly_power": "power"},
    "cosineannealing": {"min_lr": "eta_min"},
    "cosineannealing_warm_restarts": {"min_lr": "eta_min", "t0": "T_0"},
}
_NO_OPTIONS = (
    "optimizer",
    "last_epoch",  # a scheduler is resumed by load_state_dict
    "total_steps",
    "scale_fn",
    "num_warmup_steps",
    "verbose",
    *_STEPS,
)
_COUNTS = ("step_size", "T_max", "T_0", "T_mult", "step_size_up", "step_size_down", "num_decay_steps", "timescale")
_POSITIVE = ("gamma", "power", "num_cycles", "base_lr", "max_lr", "div_factor", "final_div_factor")


def list_schedulers() -> list[str]:
    """The names that `make_scheduler` knows, sorted."""
    from transformers import SchedulerType

    return sorted({*_TORCH, *_ALIASES, *(name.value for name in SchedulerType)})


def make_scheduler(
    optimizer: Optimizer,
    spec: Spec | None = None,
    *,
    num_training_steps: int | None = None,
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
    unless_given: Mapping[str, int] | None = None,
) -> Any:
    """A scheduler of the learning rate, to be stepped after each optimizer step.

    With a warm-up of W steps the learning rate of step t < W is t / W of the one that the schedule starts with; the
    schedule itself begins at step W. Three have their own: `onecycle`, which then peaks at step W;
    `cosine_warmup_with_min_lr`, (t + 1) / W; `warmup_stable_decay`, which begins at its `min_lr_ratio`. Lengths that
    are not given are chosen to fit `num_training_steps`.

    Args:
        spec: a name (`list_schedulers`), a dict with a `name` and options, or such a dict as JSON. The options are
            those of the library's class or function; keys may be upper-case. None is "none": a constant rate (a
            Trainer that is given no scheduler would take its own, a linear one).
        num_training_steps: optimizer steps of the run. This and the warm-up may stand in `spec` instead, also as
            `steps_per_epoch` and `epochs`, and `num_warmup_steps`. A warm-up of 0 is none given.
        warmup_ratio: the warm-up as a share of `num_training_steps`, rounded up.
        unless_given: `num_training_steps` and `warmup_steps` for a spec that says nothing about the one or the other.

    Returns:
        A scheduler of torch, or transformers' GreedyLR, with `step`, `get_last_lr`, `state_dict`, `load_state_dict`.

    Raises:
        ConfigError: an unknown name or option, a value that is out of range, or DeepSpeed would not use it.
    """
    name, options = parse_spec("none" if spec is None else spec, "scheduler")
    where = f"scheduler {name!r}"
    name = _ALIASES.get(name, name)
    if name not in list_schedulers():
        raise ConfigError(f"no {where}; {choices(name, list_schedulers())}")
    refuse_if_deepspeed_has_its_own("scheduler")
    with errors_of(where):
        known = {**_known_options(name), **_STEPS}
        options = check_options(options, known, where, {**_KEYS, **_KEYS_OF.get(name, {})})
        arguments = {
            "num_training_steps": num_training_steps,
            "warmup_steps": warmup_steps or None,
            "warmup_ratio": warmup_ratio or None,
        }
        for key, value in (unless_given or {}).items():
            if not any(options.get(name) is not None for name in _SAME_LENGTH[key]):
                arguments[key] = arguments[key] or value
        total, warmup = _lengths(options, arguments, where)
        _check_ranges(options, where)
        in_place = _IN_PLACE_OF_TOTAL.get(name)
        if total is None and name not in _NEEDS_NO_TOTAL and in_place not in options:
            raise ConfigError(f"{where} needs num_training_steps" + (f" or {in_place}" if in_place else ""))
        make = _from_torch if name in _TORCH else _from_transformers
        return make(name, _innermost(optimizer), options, total, warmup, where)


def steps_at_evaluations(spec: Spec) -> bool:
    """Whether a Trainer steps this scheduler with a metric, at its evaluations."""
    name, _ = parse_spec(spec, "scheduler")
    return _ALIASES.get(name, name) in _BY_METRIC


def make_optimizers(
    model: nn.Module,
    optimizer: Spec = "adamw",
    scheduler: Spec | None = None,
    *,
    num_training_steps: int | None = None,
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
) -> tuple[Optimizer, Any]:
    """`(optimizer, scheduler)`, for a Trainer's `optimizers=` or its attributes `optimizer` and `lr_scheduler`.

    Raises:
        ConfigError: as `make_optimizer` and `make_scheduler`; and under DeepSpeed, where the Trainer drops both.
        MissingExtraError: as `make_optimizer`.
    """
    refuse_optimizers_argument()
    made = make_optimizer(model, optimizer)
    return made, make_scheduler(
        made,
        scheduler,
        num_training_steps=num_training_steps,
        warmup_steps=warmup_steps,
        warmup_ratio=warmup_ratio,
    )


def _innermost(optimizer: Any) -> Optimizer:
    """The optimizer in Accelerate's and DeepSpeed's wrappers: the same groups, and `defaults`, which they lack."""
    while getattr(getattr(optimizer, "optimizer", None), "param_groups", None) is optimizer.param_groups:
        optimizer = optimizer.optimizer
    innermost: Optimizer = optimizer
    return innermost


def _known_options(name: str) -> dict[str, Any]:
    if name == "lambda":
        return {"lr_lambda": None, "lr_floor": 0.0}
    if name in _TORCH:
        return parameters_of(_TORCH[name], _NO_OPTIONS)
    from transformers import SchedulerType, optimization

    if name in _BY_METRIC:
        return parameters_of(getattr(optimization, _BY_METRIC[name]), _NO_OPTIONS)
    return parameters_of(optimization.TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)], _NO_OPTIONS)


def _lengths(options: dict[str, Any], arguments: dict[str, Any], where: str) -> tuple[int | None, int]:
    """Steps of the run and of the warm-up, taken out of `options` or from the arguments."""
    given = {key: options.pop(key) for key in _STEPS if options.get(key) is not None}
    for key, value in arguments.items():
        if value is not None and key in given and given[key] != value:
            raise ConfigError(f"{where}: {key} is {given[key]} in the spec and {value} as an argument")
        if value is not None:
            given[key] = value
    for key in ("num_training_steps", "steps_per_epoch", "epochs"):
        if key in given:
            given[key] = whole(given[key], 1, f"{where}: {key}")
    total = given.get("num_training_steps")
    if "steps_per_epoch" in given or "epochs" in given:
        if total is not None or not {"steps_per_epoch", "epochs"} <= set(given):
            raise ConfigError(f"{where}: give num_training_steps, or steps_per_epoch and epochs")
        total = given["steps_per_epoch"] * given["epochs"]
    if "warmup_steps" in given and "warmup_ratio" in given:
        raise ConfigError(f"{where}: give warmup_steps or warmup_ratio, not both")
    warmup = whole(given.get("warmup_steps", 0), 0, f"{where}: warmup_steps")
    if "warmup_ratio" in given:
        ratio = check_options({"warmup_ratio": given["warmup_ratio"]}, {"warmup_ratio": 0.0}, where)["warmup_ratio"]
        if not 0 <= ratio < 1:
            raise ConfigError(f"{where}: warmup_ratio = {ratio}: must be at least 0 and less than 1")
        if total is None:
            raise ConfigError(f"{where}: warmup_ratio needs num_training_steps")
        warmup = math.ceil(ratio * total)
    if total is not None and warmup >= total:
        raise ConfigError(f"{where}: a warm-up of {warmup} steps must be shorter than the run, {total} steps")
    return total, warmup


def _check_ranges(options: dict[str, Any], where: str) -> None:
    for key in _COUNTS:
        if options.get(key) is not None:
            options[key] = whole(options[key], 1, f"{where}: {key}")
    for key in _POSITIVE:
        value = options.get(key)
        if value is not None and not (isinstance(value, int | float) and value > 0):
            raise ConfigError(f"{where}: {key} = {value!r}: must be a number greater than 0")


def _from_transformers(
    name: str, optimizer: Optimizer, options: dict[str, Any], total: int | None, warmup: int, where: str
) -> Any:
    from transformers import get_scheduler

    if name in _BY_METRIC and warmup:
        raise ConfigError(f"{where} has no warm-up: a Trainer steps it at evaluations only")
    if name == "constant" and warmup:
        name = "constant_with_warmup"
    if name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr") and not {"min_lr", "min_lr_rate"} & set(options):
        options["min_lr_rate"] = 0.1
    if name == "warmup_stable_decay":
        if total is None and "num_decay_steps" not in options:
            raise ConfigError(f"{where} needs num_training_steps or num_decay_steps")
        options.setdefault("num_decay_steps", math.ceil(0.1 * (total or 0)))
        stable = whole(options.get("num_stable_steps", 0), 0, f"{where}: num_stable_steps")
        if total is not None and warmup + stable + options["num_decay_steps"] > total:
            raise ConfigError(f"{where}: warm-up, stable and decay steps are more than the {total} of the run")
        if "num_stable_steps" in options:
            total = None  # transformers warns where it is told both
    return get_scheduler(name, optimizer, warmup, total, scheduler_specific_kwargs=options)


def _from_torch(
    name: str, optimizer: Optimizer, options: dict[str, Any], total: int | None, warmup: int, where: str
) -> Any:
    if name == "onecycle":
        if warmup and "pct_start" in options:
            raise ConfigError(f"{where}: give pct_start or a warm-up, not both")
        if warmup and total:
            options["pct_start"] = (warmup + 1) / total  # torch's first phase ends with step pct_start * total - 1
        options["total_steps"], warmup = total, 0
    steps = 1 if total is None else total - warmup  # without a total, no option is left to fit
    options = {**_fitting(name, optimizer, steps), **options}
    if name == "multistep":
        options["milestones"] = _milestones(options.get("milestones"), steps, warmup, where)
    if name == "lambda":
        options = {"lr_lambda": _factor(options, steps, where)}
    scheduler = _TORCH[name](optimizer, **options)
    return _after_warmup(optimizer, scheduler, warmup) if warmup else scheduler


def _fitting(name: str, optimizer: Optimizer, steps: int) -> dict[str, Any]:
    """Options of torch's schedulers that fit the optimizer's learning rates and `steps`, those after the warm-up."""
    rates = [group["lr"] for group in optimizer.param_groups]
    momentum = {"cycle_momentum": _has_momentum(optimizer)}
    fitting: dict[str, dict[str, Any]] = {
        "step": {"step_size": math.ceil(steps / 3)},
        "exponential": {"gamma": 0.01 ** (1 / steps)},
        "cosineannealing": {"T_max": steps},
        "cosineannealing_warm_restarts": {"T_0": math.ceil(steps / 7), "T_mult": 2},  # 1 + 2 + 4 = 7: three cycles
        "onecycle": {"max_lr": rates, **momentum},
        "cyclic": {
            "base_lr": [rate / 10 for rate in rates],
            "max_lr": rates,
            "step_size_up": math.ceil(steps / 4),
            **momentum,
        },
    }
    return fitting.get(name, {})


def _has_momentum(optimizer: Optimizer) -> bool:
    """Whether there is one to cycle. The `betas` of bitsandbytes' RMSprop and Adagrad are something else."""
    if type(optimizer).__name__ in ("RMSprop", "Adagrad"):
        return False
    return "betas" in optimizer.defaults or optimizer.defaults.get("momentum", 0) > 0


def _milestones(value: Any, steps: int, warmup: int, where: str) -> list[int]:
    """Given ones count from the start of the run, torch's from the end of the warm-up."""
    if value is None:
        return sorted({math.ceil(steps / 2), math.ceil(3 * steps / 4)})
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, tuple) else (value,)
    try:
        milestones = [whole(float(part), warmup + 1, f"{where}: a milestone") for part in parts]
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: milestones = {value!r}: must be a list of whole numbers") from None
    if any(first >= second for first, second in pairwise(milestones)):
        raise ConfigError(f"{where}: milestones = {value!r}: must rise")
    return [milestone - warmup for milestone in milestones]


def _factor(options: dict[str, Any], steps: int, where: str) -> Callable[[int], float]:
    """The function of the step for `lambda`: the caller's own, or a line down to `lr_floor`. No text is executed."""
    function: Callable[[int], float] | None = options.get("lr_lambda")
    if function is None:
        floor = options.get("lr_floor", 0.0)
        if not 0 <= floor <= 1:
            raise ConfigError(f"{where}: lr_floor = {floor}: must be from 0 to 1, a share of the learning rate")
        return partial(_line_to_floor, steps=steps, floor=floor)
    if not callable(function):
        raise ConfigError(f"{where}: lr_lambda = {function!r}: must be a Python function; text is not executed")
    if "lr_floor" in options:
        raise ConfigError(f"{where}: give lr_lambda or lr_floor, not both")
    return function


def _line_to_floor(step: int, steps: int, floor: float) -> float:
    return floor + (1 - floor) * max(0.0, 1 - step / steps)


def _after_warmup(optimizer: Optimizer, scheduler: Any, warmup: int) -> lr_scheduler.SequentialLR:
    from transformers import get_scheduler

    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # what `scheduler` starts with: its own base for `cyclic`
    line = get_scheduler("constant_with_warmup", optimizer, warmup)
    return lr_scheduler.SequentialLR(optimizer, [line, scheduler], milestones=[warmup])
