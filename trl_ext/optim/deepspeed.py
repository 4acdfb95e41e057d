"""What DeepSpeed does to optimizers and schedulers that are not its own, told before it happens."""

from typing import Any

from trl_ext.errors import ConfigError


def refuse_if_deepspeed_has_its_own(part: str) -> None:
    """For `part`, "optimizer" or "scheduler".

    Raises:
        ConfigError: the DeepSpeed config of this run has one, which would be used in place of ours.
    """
    if part in (_config() or {}):
        raise ConfigError(f"the DeepSpeed config has a {part!r} section, which would replace this {part}: remove it")


def refuse_if_offload_replaces(name: str, kept: bool) -> None:
    """Raise ConfigError where Accelerate would put DeepSpeedCPUAdam in the place of this optimizer.

    With `offload_optimizer`, `accelerate.utils.deepspeed.map_pytorch_optim_to_deepspeed` maps Adam, AdamW, Adagrad and
    32-bit Lion to their kind on the CPU (`kept`), and everything else to DeepSpeedCPUAdam.
    """
    config = _config() or {}
    offload = (config.get("zero_optimization") or {}).get("offload_optimizer") or {}
    if kept or offload.get("device") in (None, "none") or not config.get("zero_force_ds_cpu_optimizer", True):
        return
    raise ConfigError(
        f"optimizer {name!r}: with offload_optimizer DeepSpeed would run DeepSpeedCPUAdam instead; take adam, adamw, "
        'adagrad or lion, or set "zero_force_ds_cpu_optimizer": false in the DeepSpeed config'
    )


def refuse_optimizers_argument() -> None:
    """Raise ConfigError under DeepSpeed, where transformers' Trainer drops what `optimizers=` gave it.

    `transformers.integrations.deepspeed.deepspeed_init` (5.23) sets the optimizer to None and makes its own.
    """
    if _config() is not None:
        raise ConfigError(
            "under DeepSpeed the Trainer drops an optimizer and a scheduler that it is given as objects: "
            "set optimizer and scheduler in a config of trl-ext, or make them in create_optimizer and create_scheduler"
        )


def _config() -> dict[str, Any] | None:
    """The DeepSpeed config of this process, once TrainingArguments exist; None without DeepSpeed."""
    from transformers.integrations.deepspeed import deepspeed_config

    config: dict[str, Any] | None = deepspeed_config()
    return config
