"""Options that all our trainers have beside TRL's."""

from dataclasses import dataclass, field

from trl_ext.errors import ConfigError
from trl_ext.trainers.optimizing_config import OptimizingConfig


@dataclass
class RolloutsConfig(OptimizingConfig):
    r"""What [`CISPOConfig`], [`PPOConfig`] and [`HybridConfig`] add to TRL's and [`OptimizingConfig`] alike.

    Parameters:
        reward_timeout (`float`, *optional*):
            Seconds that all rewards of one batch may take on a process; then the run ends with a message that names the
            reward that hangs. Unset: no limit on one process, on several 0.9 `ddp_timeout`, before their collectives
            time out. (A `timeout` in a reward spec is for one part of it, and may be survived.)
        lean_update (`bool`, *optional*, defaults to `True`):
            Leave out rows without a gradient and most of the padding: the same update for less work
            (docs/lean_update.md).

    Raises:
        ConfigError: `reward_timeout` is not greater than 0, a count is not at least 1, or a coefficient is negative.
    """

    reward_timeout: float | None = field(
        default=None,
        metadata={
            "help": "Seconds that all rewards of a batch may take on a process, before the run ends and names the one "
            "that hangs. Unset: no limit on one process, 0.9 * ddp_timeout on several."
        },
    )

    lean_update: bool = field(
        default=True,
        metadata={"help": "Leave out rows without a gradient and most padding: the same update for less work."},
    )

    def __post_init__(self) -> None:
        if self.reward_timeout is not None and not self.reward_timeout > 0.0:
            raise ConfigError(f"reward_timeout = {self.reward_timeout}: must be greater than 0, or unset")
        for name in ("num_iterations", "num_generations", "steps_per_generation", "max_completion_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} = {value}: must be at least 1")
        for name in ("beta", "epsilon_high"):
            value = getattr(self, name)
            if value is not None and not value >= 0.0:  # NaN is not >= 0 either
                raise ConfigError(f"{name} = {value}: must be a number of at least 0")
        super().__post_init__()
