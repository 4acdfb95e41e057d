"""Configuration of the CISPO trainer."""

import math
import warnings
from dataclasses import dataclass, field

from trl_ext.errors import ConfigError
from trl_ext.trainers.field_types import check_types
from trl_ext.trainers.rollouts_config import RolloutsConfig

LOSS_AGGREGATIONS = ("token", "prompt", "sequence")


@dataclass
class CISPOConfig(RolloutsConfig):
    r"""Configuration of [`CISPOTrainer`]: everything in [`~trl.GRPOConfig`] and [`RolloutsConfig`], with
    `loss_type="cispo"` and these.

    All bounds are absolute values of the importance-sampling weight r = pi / pi_old, not distances from 1.

    Parameters:
        importance_weight_max (`float`, *optional*):
            Upper bound of r: 1 + eps_high in MiniMax-M1 (arXiv 2506.13585, Eq. 5), eps_max in ScaleRL (arXiv
            2510.13786), where 4, 5 and 8 make no difference. The same as TRL's `epsilon_high`, which may be given
            instead. 5.0 if neither is given.
        importance_weight_min (`float`, *optional*, defaults to `0.0`):
            Lower bound of r: 1 - eps_low in MiniMax-M1, which sets none in practice.
        trust_region_low (`float`, *optional*):
            A token with a negative advantage and r below this has no gradient (the mask M of MiniMax-M1, Eq. 6-7).
        trust_region_high (`float`, *optional*):
            A token with a positive advantage and r above this has no gradient.
        loss_aggregation (`str`, *optional*, defaults to `"token"`):
            What weighs the same: every `"token"` of the batch (TRL), every `"prompt"`'s group of completions
            (MiniMax-M1 Eq. 4, ScaleRL), or every `"sequence"`. Concerns the policy loss; a KL penalty (`beta`) stays
            per token.

    Raises:
        ConfigError: a bound is negative, NaN or in the wrong order, or an option is unknown.
    """

    loss_type: str = field(default="cispo", metadata={"help": "Always 'cispo' here."})
    importance_weight_max: float | None = field(
        default=None,
        metadata={
            "help": "Upper bound of the importance-sampling weight r = pi/pi_old, absolute (not 1 + eps). The same as "
            "--epsilon_high, which may be given instead. 5.0 if neither is given."
        },
    )
    importance_weight_min: float = field(
        default=0.0, metadata={"help": "Lower bound of the importance-sampling weight, absolute. 0.0 sets none."}
    )
    trust_region_low: float | None = field(
        default=None,
        metadata={"help": "Tokens with negative advantage and r below this (absolute, at most 1) get no gradient."},
    )
    trust_region_high: float | None = field(
        default=None,
        metadata={"help": "Tokens with positive advantage and r above this (absolute, at least 1) get no gradient."},
    )
    loss_aggregation: str = field(
        default="token",
        metadata={
            "help": "What weighs the same in the loss: every 'token' (TRL), every 'prompt' with its group of "
            "completions (MiniMax-M1, ScaleRL), or every 'sequence'.",
            "choices": list(LOSS_AGGREGATIONS),
        },
    )

    def __post_init__(self) -> None:
        check_types(self)
        self._check_bounds()
        self.epsilon_high = self.importance_weight_max
        super().__post_init__()

    def _check_bounds(self) -> None:
        if self.loss_type != "cispo":
            raise ConfigError(
                f"loss_type = {self.loss_type!r}: must be 'cispo' here; use trl.GRPOConfig for the others"
            )
        if self.loss_aggregation not in LOSS_AGGREGATIONS:
            raise ConfigError(f"loss_aggregation = {self.loss_aggregation!r}: must be one of {LOSS_AGGREGATIONS}")
        if self.importance_weight_max is None:
            self.importance_weight_max = 5.0 if self.epsilon_high is None else self.epsilon_high
        elif self.epsilon_high not in (None, self.importance_weight_max):
            raise ConfigError(
                f"importance_weight_max = {self.importance_weight_max} and epsilon_high = {self.epsilon_high} are two "
                "names of one bound: give one of them"
            )

        for name in ("importance_weight_min", "importance_weight_max", "trust_region_low", "trust_region_high"):
            bound = getattr(self, name)
            if bound is not None and not bound >= 0.0:  # NaN is not >= 0 either
                raise ConfigError(f"{name} = {bound}: must be a number of at least 0 (a bound on r = pi/pi_old)")
        if math.isinf(self.importance_weight_min):
            raise ConfigError("importance_weight_min = inf: must be finite")
        if self.importance_weight_max == 0.0:
            raise ConfigError("importance_weight_max = 0.0: must be greater than 0, or nothing is learnt")
        if self.importance_weight_min > self.importance_weight_max:
            raise ConfigError(
                f"importance_weight_min = {self.importance_weight_min}: must be at most importance_weight_max "
                f"({self.importance_weight_max})"
            )
        if self.trust_region_low is not None and self.trust_region_low > 1.0:
            raise ConfigError(f"trust_region_low = {self.trust_region_low}: must be at most 1 (e.g. 0.8)")
        if self.trust_region_high is not None and self.trust_region_high < 1.0:
            raise ConfigError(
                f"trust_region_high = {self.trust_region_high}: must be at least 1; bounds are absolute, "
                f"did you mean {1.0 + self.trust_region_high:g}?"
            )
        if self.importance_weight_max < 1.0:
            warnings.warn(
                f"importance_weight_max = {self.importance_weight_max} is absolute and shrinks every on-policy token "
                f"(r = 1); did you mean {1.0 + self.importance_weight_max:g}?",
                stacklevel=4,
            )
