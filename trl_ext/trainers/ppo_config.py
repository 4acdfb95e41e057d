"""Configuration of the PPO trainer."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from trl import GRPOConfig

from trl_ext.errors import ConfigError
from trl_ext.trainers.field_types import check_types
from trl_ext.trainers.rollouts_config import RolloutsConfig

LOSS_TYPES = ("dapo", "bnpo", "grpo", "dr_grpo", "cispo", "sapo")
KL_ESTIMATORS = ("k1", "k3")
VALUE_MODELS = ("shared", "separate")


class _One(int):
    """1, which `GRPOConfig` takes for at least 2: with a value function one completion per prompt is enough."""

    def __lt__(self, other: Any) -> bool:
        return False


@dataclass
class PPOConfig(RolloutsConfig):
    r"""Configuration of [`PPOTrainer`]: everything in [`~trl.GRPOConfig`] and [`RolloutsConfig`], and PPO's own under
    TRL 1.12's names.

    Names in brackets are `GRPOConfig`'s for the same thing; give one of the two. docs/ppo.md has the table from TRL
    1.12's `PPOConfig` to this.

    Parameters:
        num_ppo_epochs (`int`, *optional*, defaults to `4`) [`num_iterations`]:
            How often each batch of completions is gone through.
        num_mini_batches (`int`, *optional*, defaults to `1`):
            Optimizer steps that one pass over the completions takes: `steps_per_generation` is this times
            `gradient_accumulation_steps`, unless it or `generation_batch_size` is given.
        cliprange (`float`, *optional*, defaults to `0.2`) [`epsilon`]:
            Clip of the probability ratio; `epsilon_high` sets the upper side apart (clip-higher, 0.28 in VAPO).
        response_length (`int`, *optional*) [`max_completion_length`]:
            The most tokens of a completion.
        num_generations (`int`, *optional*, defaults to `1`):
            Completions per prompt.
        kl_coef (`float`, *optional*):
            Coefficient of the KL penalty that is taken off the reward, token by token. 0.05, or 0 if `beta` (a KL
            penalty in the loss) is given.
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            Estimator of that KL: `"k1"` or `"k3"`.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount per token that the model writes.
        lam (`float`, *optional*, defaults to `0.95`):
            Lambda of GAE for the advantages.
        lam_value (`float`, *optional*):
            Lambda of GAE for the value function's returns (VC-PPO: 1.0). The same as `lam` if unset.
        lam_length_alpha (`float`, *optional*):
            Length-adaptive lambda (VAPO, arXiv 2504.05118: 0.05) instead of `lam`: 1 - 1 / (alpha * length), at least
            0, length being the tokens that the model wrote.
        whiten_rewards (`bool`, *optional*, defaults to `False`):
            Scale the rewards per token to variance 1, over all processes.
        whiten_advantages (`bool`, *optional*, defaults to `True`):
            Bring the advantages to mean 0 and variance 1, over all processes (TRL 1.12 always does, per process).
        missing_eos_penalty (`float`, *optional*):
            Taken off the score of a completion without an end-of-sequence token.
        value_model (`str`, *optional*, defaults to `"shared"`):
            `"shared"`: a head on the policy's trunk. `"separate"`: a critic of its own.
        value_model_name_or_path (`str`, *optional*):
            The checkpoint of a separate critic, e.g. a reward model; the policy's own if unset.
        value_learning_rate (`float`, *optional*):
            Learning rate of the head or the critic; `learning_rate` if unset.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Coefficient of the value loss. With 0 the value function is not trained.
        cliprange_value (`float`, *optional*, defaults to `0.2`):
            How far a value may move from what it was when the completions were sampled; 0 or less sets no limit.
        value_warmup_steps (`int`, *optional*, defaults to `0`):
            Optimizer steps at the beginning that train the value function alone (VC-PPO, VAPO: 50).
        positive_lm_coef (`float`, *optional*, defaults to `0.0`):
            Coefficient of the language-model loss on completions whose score is at least `positive_threshold` (VAPO:
            0.1).
        positive_threshold (`float`, *optional*, defaults to `1.0`):
            From which score on a completion is a positive example.

    > [!NOTE]
    > Other defaults than in [`~trl.GRPOConfig`]: `learning_rate` 3e-6, `num_generations` 1, `num_iterations` 4.

    Raises:
        ConfigError: two names of one option disagree, or a value is out of its range.
    """

    learning_rate: float = field(default=3e-6, metadata={"help": "The initial learning rate."})
    num_generations: int = field(default=1, metadata={"help": "Completions per prompt."})
    num_iterations: int | None = field(default=None, metadata={"help": "The same as --num_ppo_epochs."})
    epsilon: float | None = field(default=None, metadata={"help": "The same as --cliprange."})
    max_completion_length: int | None = field(default=None, metadata={"help": "The same as --response_length."})

    num_ppo_epochs: int | None = field(
        default=None, metadata={"help": "How often each batch of completions is gone through. 4 if unset."}
    )
    num_mini_batches: int = field(
        default=1, metadata={"help": "Optimizer steps that one pass over the batch of completions takes."}
    )
    cliprange: float | None = field(default=None, metadata={"help": "Clip of the probability ratio. 0.2 if unset."})
    response_length: int | None = field(
        default=None,
        metadata={"help": f"The most tokens of a completion. {GRPOConfig.max_completion_length} if unset."},
    )
    kl_coef: float | None = field(
        default=None,
        metadata={"help": "Coefficient of the KL penalty in the reward. 0.05, or 0 with --beta (KL in the loss)."},
    )
    kl_estimator: Literal["k1", "k3"] = field(
        default="k1", metadata={"help": "Estimator of the KL in the reward.", "choices": list(KL_ESTIMATORS)}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of GAE for the advantages."})
    lam_value: float | None = field(
        default=None, metadata={"help": "Lambda of GAE for the returns that the value function learns. --lam if unset."}
    )
    lam_length_alpha: float | None = field(
        default=None, metadata={"help": "Length-adaptive lambda 1 - 1/(alpha * length) instead of --lam (VAPO: 0.05)."}
    )
    whiten_rewards: bool = field(default=False, metadata={"help": "Scale the rewards per token to variance 1."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Bring the advantages to mean 0 and variance 1."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the score of a completion that has no end-of-sequence token."}
    )
    value_model: str = field(
        default="shared",
        metadata={"help": "A head on the policy's trunk, or a critic of its own.", "choices": list(VALUE_MODELS)},
    )
    value_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint of a separate critic. The policy's own if unset."}
    )
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the value function. --learning_rate if unset."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Coefficient of the value loss."})
    cliprange_value: float = field(
        default=0.2, metadata={"help": "How far a value may move from that of the rollout. 0: no limit."}
    )
    value_warmup_steps: int = field(
        default=0, metadata={"help": "Optimizer steps at the beginning that train the value function alone."}
    )
    positive_lm_coef: float = field(
        default=0.0, metadata={"help": "Coefficient of the language-model loss on completions with a high score."}
    )
    positive_threshold: float = field(
        default=1.0, metadata={"help": "From which score on a completion is a positive example."}
    )

    def __post_init__(self) -> None:
        check_types(self)
        self.num_iterations = self.num_ppo_epochs = self._one_of("num_ppo_epochs", "num_iterations", 4)
        self.epsilon = self.cliprange = self._one_of("cliprange", "epsilon", 0.2)
        self.max_completion_length = self.response_length = self._one_of(
            "response_length", "max_completion_length", GRPOConfig.max_completion_length
        )
        if self.kl_coef is None:
            self.kl_coef = 0.0 if self.beta else 0.05
        self._check()
        if self.steps_per_generation is None and self.generation_batch_size is None:  # type: ignore[has-type]
            self.steps_per_generation = self.num_mini_batches * self.gradient_accumulation_steps
        self.num_generations = _One(1) if self.num_generations == 1 else self.num_generations
        super().__post_init__()
        self.num_generations = int(self.num_generations)

    def _one_of(self, name: str, other: str, default: Any) -> Any:
        """The value of an option that has two names."""
        value, same = getattr(self, name), getattr(self, other)
        if value is not None and same is not None and value != same:
            raise ConfigError(f"{name} = {value} and {other} = {same} are two names of one option: give one of them")
        return default if value is None and same is None else same if value is None else value

    def _check(self) -> None:
        at_least = {
            "num_ppo_epochs": 1,
            "num_mini_batches": 1,
            "response_length": 1,
            "num_generations": 1,
            "value_warmup_steps": 0,
            "cliprange": 0.0,
            "cliprange_value": 0.0,
            "kl_coef": 0.0,
            "vf_coef": 0.0,
            "positive_lm_coef": 0.0,
        }
        for name, low in at_least.items():
            value = getattr(self, name)
            if not (value >= low and math.isfinite(value)):  # NaN is not >= 0 either
                raise ConfigError(f"{name} = {value}: must be a finite number of at least {low}")
        for name in ("gamma", "lam", "lam_value"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} = {value}: must be from 0 to 1")
        for name in ("lam_length_alpha", "missing_eos_penalty", "value_learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ConfigError(f"{name} = {value}: must be greater than 0, or unset")
        self._check_choices(
            {
                "kl_estimator": KL_ESTIMATORS,
                "value_model": VALUE_MODELS,
                "loss_type": LOSS_TYPES,
                "importance_sampling_level": ("token",),
            }
        )
        if self.kl_coef and self.beta:
            raise ConfigError(
                f"kl_coef = {self.kl_coef} (KL in the reward) and beta = {self.beta} (KL in the loss): give one of them"
            )
        if self.value_model_name_or_path is not None and self.value_model != "separate":
            raise ConfigError("value_model_name_or_path is for value_model='separate', this is 'shared'")

    def _check_choices(self, choices: dict[str, tuple[str, ...]]) -> None:
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: must be one of {allowed}")
