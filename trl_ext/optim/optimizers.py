"""Optimizers by name: torch's, transformers' and bitsandbytes'. None is written here."""

import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trl_ext.errors import ConfigError, MissingExtraError, choices
from trl_ext.optim.deepspeed import refuse_if_deepspeed_has_its_own, refuse_if_offload_replaces
from trl_ext.optim.options import Spec, check_options, errors_of, parameters_of, parse_spec

LEARNING_RATE = 5e-5  # transformers' default; torch's 1e-3 is made for training from scratch

_TORCH = {"adam": "Adam", "adamw": "AdamW"}
_BITSANDBYTES = {
    "adam": "Adam",
    "adamw": "AdamW",
    "ademamix": "AdEMAMix",
    "lion": "Lion",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
}
_PAGED = ("adam", "adamw", "ademamix", "lion")
_FAMILIES = (*_BITSANDBYTES, "adafactor")
_ALIASES = {
    "ademamix": "ademamix_32bit",
    "lion": "lion_32bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "rmsprop_bnb": "rmsprop_32bit",
    "rmsprop_bnb_8bit": "rmsprop_8bit",
    "rmsprop_bnb_32bit": "rmsprop_32bit",
}
# name: (family, bits of the state, paged)
_VARIANTS = {
    f"{'paged_' * paged}{family}_{bits}bit": (family, bits, paged)
    for family in _BITSANDBYTES
    for paged in (False, True)
    for bits in (8, 32)
    if not paged or family in _PAGED
}

# Taken by bitsandbytes' classes, and without effect in them or refused unless 0.
_WITHOUT_EFFECT = {
    "adam": ("amsgrad",),
    "adamw": ("amsgrad",),
    "adagrad": ("lr_decay", "initial_accumulator_value"),
    "rmsprop": ("momentum", "centered"),
    "sgd": ("dampening", "nesterov"),
}
# Set by a name, or of no use with a learning rate that a scheduler sets (Adafactor's relative steps need lr=None).
_NO_OPTIONS = ("params", "model", "optim_bits", "is_paged", "args", "relative_step", "warmup_init")
_KEYS = {"learning_rate": "lr", "lrate": "lr"}


def list_optimizers() -> list[str]:
    """The names that `make_optimizer` knows, sorted. Some need a package that is not installed."""
    from transformers.training_args import OptimizerNames

    names = {*_TORCH, *_VARIANTS, *_ALIASES, *(name.value for name in OptimizerNames)}
    return sorted(name for name in names if not _steps_in_backward(name))


def make_optimizer(
    model: nn.Module, spec: Spec = "adamw", *, unless_given: Mapping[str, float] | None = None
) -> Optimizer:
    """An optimizer over the trainable parameters of `model`, without weight decay on norms and biases.

    Args:
        model: the model that is trained, with its adapters and heads.
        spec: a name (`list_optimizers`), a dict with a `name` and options, or such a dict as JSON. The options are
            those of the library's class, and `beta1`, `beta2`, `beta3`; keys may be upper-case. What is not given has
            the default of the class, but for `lr`, which is 5e-5.
        unless_given: other defaults than those, e.g. of `lr` and `weight_decay`; left out where the class has no such
            option.

    Raises:
        ConfigError: an unknown name or option, a value that is out of range, or DeepSpeed would not use it.
        MissingExtraError: the package that has it is not installed.
    """
    name, options = parse_spec(spec, "optimizer")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"make_optimizer takes the model itself, this is {type(model).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("make_optimizer: the model has no parameter that requires a gradient")
    refuse_if_deepspeed_has_its_own("optimizer")
    where = f"optimizer {name!r}"
    with errors_of(where):
        family, bits, paged = _VARIANTS.get(_ALIASES.get(name, name), ("", 0, False))
        hidden: tuple[str, ...] = _NO_OPTIONS
        if family:
            optimizer_class, arguments = _bitsandbytes(name, family, bits, paged)
            hidden += _WITHOUT_EFFECT.get(family, ())
        elif name in _TORCH:
            optimizer_class, arguments = getattr(torch.optim, _TORCH[name]), {}
        else:
            optimizer_class, arguments = _transformers(model, name, options, where)
        same_kind = optimizer_class in (torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
        refuse_if_offload_replaces(name, same_kind or (family in ("adam", "adamw", "adagrad", "lion") and bits == 32))
        defaults = parameters_of(optimizer_class, without=hidden)
        return _built(model, optimizer_class, _with_options(arguments, options, defaults, where, unless_given or {}))


def _bitsandbytes(name: str, family: str, bits: int, paged: bool) -> tuple[Any, dict[str, Any]]:
    try:
        import bitsandbytes
    except ImportError:
        raise MissingExtraError(f"optimizer {name!r} needs bitsandbytes: pip install 'trl-ext[optim]'") from None
    # AdEMAMix32bit raises on a CPU in bitsandbytes 0.50.2, AdEMAMix(optim_bits=32) works
    arguments: dict[str, Any] = {"optim_bits": bits}
    if paged and torch.accelerator.is_available():
        arguments["is_paged"] = True
    elif paged:
        warnings.warn(f"optimizer {name!r}: no accelerator here, so its state is not paged", stacklevel=3)
    if family == "sgd":
        arguments["momentum"] = 0.9  # without momentum there is no state, and bitsandbytes refuses
    return getattr(bitsandbytes.optim, _BITSANDBYTES[family]), arguments


def _transformers(model: nn.Module, name: str, options: dict[str, Any], where: str) -> tuple[Any, dict[str, Any]]:
    """The class and arguments that transformers' Trainer has for `name`. Takes `target_modules` out of `options`."""
    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    if name not in {known.value for known in OptimizerNames}:
        raise ConfigError(_no_such_name(name))
    if _steps_in_backward(name):
        raise ConfigError(f"{where} steps inside the backward pass, which only the Trainer's optim= arranges")
    # the defaults of TrainingArguments are class attributes; __init__ would set up devices and processes
    args = TrainingArguments.__new__(TrainingArguments)
    args.optim = OptimizerNames(name)
    if name.startswith(("galore", "apollo")):
        own = {key: options.pop(key) for key in list(options) if key.lower() == "target_modules"}
        modules = check_options(own, {"target_modules": None}, where).get("target_modules", "all-linear")
        args.optim_target_modules = list(modules) if isinstance(modules, tuple) else modules
    try:
        optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(args, model)
    except ValueError as error:  # some packages that are missing are told so
        if isinstance(error.__context__, ImportError) or "pip install" in str(error):
            raise ImportError(str(error)) from None
        raise
    arguments.pop("lr", None)
    return optimizer_class, arguments


def _steps_in_backward(name: str) -> bool:
    return name in ("lomo", "adalomo") or name.endswith("_layerwise")


def _no_such_name(name: str) -> str:
    names = list_optimizers()
    families = {family for family in _FAMILIES if family in name.split("_")}
    if families:
        variants = [known for known in names if families & set(known.split("_"))]
        return f"optimizer {name!r}: there is no such variant; there are {', '.join(variants)}"
    return f"no optimizer {name!r}; {choices(name, names)}"


def _with_options(
    arguments: dict[str, Any],
    options: dict[str, Any],
    defaults: dict[str, Any],
    where: str,
    unless_given: Mapping[str, float],
) -> dict[str, Any]:
    """`arguments` with the options, which are those of the class (`defaults`), those of the groups of a low-rank
    optimizer, and the `beta1`, `beta2`, `beta3` that make up `betas`."""
    groups: list[dict[str, Any]] = arguments.get("params", [])
    of_groups = {key: value for group in groups for key, value in group.items() if key != "params"}
    betas = arguments.get("betas", defaults.get("betas", ()))
    split = {f"beta{index}": beta for index, beta in enumerate(betas, 1)}
    known = {**defaults, **of_groups, **split, "lr": LEARNING_RATE}
    ours = {"lr": LEARNING_RATE, **{key: value for key, value in unless_given.items() if key in known}}
    checked = {**ours, **check_options(options, known, where, _KEYS)}
    if not checked["lr"] > 0:
        raise ConfigError(f"{where}: lr = {checked['lr']}: must be greater than 0")
    if not checked.get("weight_decay", 0) >= 0:
        raise ConfigError(f"{where}: weight_decay = {checked['weight_decay']}: must be at least 0")
    given = {key: checked.pop(key) for key in split if key in checked}
    if given and "betas" in checked:
        raise ConfigError(f"{where}: {', '.join(given)} and betas are one option, given twice")
    if given:
        checked["betas"] = tuple(given.get(key, beta) for key, beta in split.items())
    for group in groups:
        group.update({key: checked[key] for key in group if key in checked})
    decay = {"weight_decay": defaults["weight_decay"]} if "weight_decay" in defaults else {}
    return {**decay, **arguments, **{key: value for key, value in checked.items() if key in defaults or key == "lr"}}


def _built(model: nn.Module, optimizer_class: Any, arguments: dict[str, Any]) -> Optimizer:
    """What `Trainer.create_optimizer` makes of it: two groups, with and without decay; embeddings in 32 bits for the
    8-bit ones of bitsandbytes; a group per device mesh."""
    from transformers import Trainer

    weight_decay = arguments.pop("weight_decay", 0.0)

    def decayed_names(model: nn.Module) -> list[str]:
        names: list[str] = Trainer.get_decay_parameter_names(None, model)
        return names

    if "params" in arguments:  # low-rank ones come with groups, which have no decay and parameters that are frozen
        decayed = set(decayed_names(model))
        kept = {id(parameter) for name, parameter in model.named_parameters() if name in decayed}
        arguments["params"] = [
            {**group, "params": chosen, "weight_decay": decay}
            for group in arguments["params"]
            for decay, wanted in ((weight_decay, True), (0.0, False))
            if (chosen := [p for p in group["params"] if p.requires_grad and (id(p) in kept) == wanted])
        ]
    trainer = SimpleNamespace(  # all that the method reads of a trainer
        model=model,
        model_wrapped=model,
        optimizer=None,
        args=SimpleNamespace(weight_decay=weight_decay),
        optimizer_cls_and_kwargs=(optimizer_class, arguments),
        get_decay_parameter_names=decayed_names,
    )
    optimizer: Optimizer = Trainer.create_optimizer(trainer)
    return optimizer
