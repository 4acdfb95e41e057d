"""Configuration of the hybrid trainer."""

import math
from dataclasses import dataclass, field

from trl_ext.errors import ConfigError
from trl_ext.trainers.field_types import check_types
from trl_ext.trainers.hybrid_schedule import SHAPES, Phase, alternate, check_phases, curriculum, ramp, sequential
from trl_ext.trainers.ppo_config import PPOConfig

MODES = ("alternate", "curriculum", "sequential", "joint", "gate", "buffer")
RL_LOSSES = ("ppo", "cispo", "grpo")


@dataclass
class HybridConfig(PPOConfig):
    r"""Configuration of [`HybridTrainer`]: everything in [`PPOConfig`], and how supervised steps are mixed in.

    A step is an optimizer step. A batch of completions is trained on for `num_ppo_epochs` x `num_mini_batches` of them
    (a block), which stay together.

    Parameters:
        mode (`str`, *optional*, defaults to `"alternate"`):
            `"alternate"`: `sft_steps` on demonstrations, then `rl_steps` on rewards, repeated. `"curriculum"`: the
            share of steps on rewards grows. `"sequential"`: `sft_steps` on demonstrations, then rewards to the end.
            `"joint"`: every step has both, (1 - mu) RL + mu SFT (CHORD, arXiv 2508.11408). `"gate"`: a prompt that is
            solved at most `gate` of the time trains on its demonstration, the others on rewards (HPT, arXiv
            2509.04419). `"buffer"`: the demonstrations of such prompts are collected, and trained on when `buffer_size`
            are there (ReLIFT, arXiv 2506.07527).
        rl_loss (`str`, *optional*, defaults to `"ppo"`):
            `"ppo"`, or `"cispo"` or `"grpo"` with TRL's group advantages and no value function. These two take `beta`,
            and no `kl_coef`, `missing_eos_penalty`, `positive_lm_coef` or `value_warmup_steps`.
        sft_steps (`int`, *optional*, defaults to `1`):
            Steps on demonstrations: per cycle in `"alternate"`, in all in `"sequential"`.
        rl_steps (`int`, *optional*):
            Steps on rewards per cycle of `"alternate"`; one block if unset. Must be a multiple of a block.
        rl_share_start, rl_share_end (`float`, *optional*, defaults to `0.1` and `1.0`):
            `"curriculum"`: the share of steps on rewards at the beginning and at the end.
        mu_start, mu_end (`float`, *optional*, defaults to `0.9` and `0.05`):
            `"joint"`: the weight of the SFT loss at the beginning and at the end.
        schedule_shape (`str`, *optional*, defaults to `"linear"`):
            How the share or mu goes from one to the other: `"linear"`, `"cosine"` or `"step"` (at once in the middle).
        sft_token_weighting (`bool`, *optional*, defaults to `False`):
            Weigh each demonstration token's loss by p (1 - p), p being its probability (CHORD's phi).
        solved_threshold (`float`, *optional*, defaults to `1.0`):
            From which score on a completion counts as solved (`"gate"`, `"buffer"`).
        gate (`float`, *optional*, defaults to `0.0`):
            The share of solved completions at or under which a prompt is left to its demonstration.
        buffer_size (`int`, *optional*):
            Prompts that make the buffer full; what one optimizer step takes if unset.
        sft_batch_size (`int`, *optional*):
            Demonstrations in a micro-batch of a process; `per_device_train_batch_size` if unset.
        sft_max_length (`int`, *optional*, defaults to `1024`):
            Tokens of prompt and demonstration together; the demonstration is cut to it.
        sft_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the SFT loss in `"gate"`.
        merge_every (`int`, *optional*):
            Steps between standalone models in `output_dir/merged-STEP` (adapters merged, value function left out).
        merge_average (`float`, *optional*):
            Let such a model be an average: this much of the weights after the last step on rewards, the rest of those
            after the last step on demonstrations. For the modes with phases (all but `"joint"` and `"gate"`). Takes
            main memory for one more copy of what is trained (all weights, or the adapters), and as much disk in each
            checkpoint.

    Raises:
        ConfigError: an option is out of its range, or the schedule lacks one of the two kinds of steps.
    """

    mode: str = field(
        default="alternate", metadata={"help": "How demonstrations and rewards are mixed.", "choices": list(MODES)}
    )
    rl_loss: str = field(default="ppo", metadata={"help": "The loss on rewards.", "choices": list(RL_LOSSES)})
    sft_steps: int = field(
        default=1, metadata={"help": "Steps on demonstrations: per cycle (alternate), or in all (sequential)."}
    )
    rl_steps: int | None = field(
        default=None, metadata={"help": "Steps on rewards per cycle (alternate). One block of completions if unset."}
    )
    rl_share_start: float = field(default=0.1, metadata={"help": "curriculum: the share of RL steps at the beginning."})
    rl_share_end: float = field(default=1.0, metadata={"help": "curriculum: the share of RL steps at the end."})
    mu_start: float = field(default=0.9, metadata={"help": "joint: the weight of the SFT loss at the beginning."})
    mu_end: float = field(default=0.05, metadata={"help": "joint: the weight of the SFT loss at the end."})
    schedule_shape: str = field(
        default="linear", metadata={"help": "How the share or mu changes.", "choices": list(SHAPES)}
    )
    sft_token_weighting: bool = field(
        default=False, metadata={"help": "Weigh the loss of a demonstration's token by p(1-p)."}
    )
    solved_threshold: float = field(
        default=1.0, metadata={"help": "gate, buffer: from which score on a completion counts as solved."}
    )
    gate: float = field(
        default=0.0, metadata={"help": "gate, buffer: the share of solved completions up to which a prompt is hard."}
    )
    buffer_size: int | None = field(
        default=None, metadata={"help": "buffer: prompts that make it full. What an optimizer step takes if unset."}
    )
    sft_batch_size: int | None = field(
        default=None, metadata={"help": "Demonstrations per device. per_device_train_batch_size if unset."}
    )
    sft_max_length: int = field(default=1024, metadata={"help": "Tokens of a prompt and its demonstration."})
    sft_coef: float = field(default=1.0, metadata={"help": "gate: the weight of the SFT loss."})
    merge_every: int | None = field(
        default=None, metadata={"help": "Steps between standalone merged models in output_dir/merged-STEP."}
    )
    merge_average: float | None = field(
        default=None,
        metadata={
            "help": "Let merged models be the average of the last weights of the two phases: the share of the RL "
            "phase's, from 0 to 1. Unset: the current weights."
        },
    )

    def __post_init__(self) -> None:
        check_types(self)
        self._check_choices({"mode": MODES, "rl_loss": RL_LOSSES, "schedule_shape": SHAPES})
        if self.rl_loss != "ppo":
            if self.num_generations < 2:
                raise ConfigError(
                    f"num_generations = {self.num_generations}: must be at least 2 with rl_loss = {self.rl_loss!r}, "
                    "which compares the completions of a prompt"
                )
            for name in ("kl_coef", "missing_eos_penalty", "positive_lm_coef", "value_warmup_steps"):
                if getattr(self, name):
                    hint = "; beta is its KL penalty" if name == "kl_coef" else ""
                    raise ConfigError(
                        f"{name} = {getattr(self, name)}: is of rl_loss = 'ppo', this is {self.rl_loss!r}{hint}"
                    )
            self.kl_coef, self.vf_coef = 0.0, 0.0  # they have no values
            if self.rl_loss == "cispo":
                self.loss_type = "cispo"
                self.epsilon_high = 5.0 if self.epsilon_high is None else self.epsilon_high  # type: ignore[has-type]
        super().__post_init__()
        self._check_hybrid()

    @property
    def rl_block(self) -> int:
        """Optimizer steps that one batch of completions is trained on for."""
        micro_steps = int(self.steps_per_generation) * int(self.num_iterations or 1)
        return max(1, micro_steps // int(self.gradient_accumulation_steps))

    def phases(self, max_steps: int) -> list[Phase]:
        """The phase of each of `max_steps` steps, as far as the mode fixes it ("rl" where it does not).

        Raises:
            ConfigError: a kind of step never comes.
        """
        if self.mode in ("joint", "gate", "buffer"):
            return ["rl"] * max_steps
        if self.mode == "alternate":
            phases = alternate(max_steps, self.sft_steps, self.rl_steps or self.rl_block)
        elif self.mode == "sequential":
            phases = sequential(max_steps, self.sft_steps)
        else:
            phases = curriculum(
                max_steps,
                self.rl_block,
                lambda progress: ramp(progress, self.rl_share_start, self.rl_share_end, self.schedule_shape),  # type: ignore[arg-type]
            )
        check_phases(phases, self.mode)
        return phases

    def mu(self, progress: float) -> float:
        """The weight of the SFT loss in `joint`, when that share of the steps is done."""
        return ramp(progress, self.mu_start, self.mu_end, self.schedule_shape)  # type: ignore[arg-type]

    def _check_hybrid(self) -> None:
        for name in ("sft_steps", "rl_steps", "buffer_size", "sft_batch_size", "sft_max_length", "merge_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} = {value}: must be at least 1")
        for name in ("rl_share_start", "rl_share_end", "mu_start", "mu_end", "gate", "merge_average"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} = {value}: must be from 0 to 1")
        if not (self.sft_coef > 0.0 and math.isfinite(self.sft_coef)):
            raise ConfigError(f"sft_coef = {self.sft_coef}: must be greater than 0")
        if self.rl_steps is not None and self.rl_steps % self.rl_block:
            raise ConfigError(
                f"rl_steps = {self.rl_steps}: must be a multiple of {self.rl_block}, the steps that one batch of "
                "completions is trained on for (num_ppo_epochs x num_mini_batches)"
            )
        if self.merge_average is not None and self.mode in ("joint", "gate"):
            raise ConfigError(
                f"merge_average = {self.merge_average}: mode = {self.mode!r} has no phases to average the weights of"
            )
        if self.merge_average is not None and self.merge_every is None:
            raise ConfigError(
                f"merge_average = {self.merge_average}: needs merge_every, the steps between merged models"
            )
        if self.max_steps > 0:
            self.phases(self.max_steps)
