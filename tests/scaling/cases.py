"""Seeded training runs that must end the same however they are spread over processes."""

from typing import Any

import torch
from accelerate.utils import gather_object
from peft import LoraConfig

from tests.trainers.training import PROMPTS, config, demonstrations, fixed_rollout, make_trainer, ragged_rollout
from trl_ext import CISPOConfig, CISPOTrainer, HybridConfig, HybridTrainer, PPOConfig, PPOTrainer
from trl_ext.rewards import make_reward_funcs

ROWS = 16  # completions of an optimizer step, on all processes and over the accumulation window
TRAINERS = {
    "cispo": (CISPOTrainer, CISPOConfig),
    "ppo": (PPOTrainer, PPOConfig),
    "hybrid": (HybridTrainer, HybridConfig),
}
# Without momentum the weights move by what the gradients are: Adam would blow rounding up where one is nearly 0.
SGD = {"optim": "sgd", "learning_rate": 0.3}
CISPO = {
    "num_iterations": 2,
    "importance_weight_max": 1.02,
    "importance_weight_min": 0.98,
    "loss_aggregation": "prompt",
    "top_entropy_quantile": 0.5,
    **SGD,
}
PPO = {"num_ppo_epochs": 2, "vf_coef": 0.5, "whiten_rewards": True, "num_generations": 2, **SGD}
HYBRID = {"num_ppo_epochs": 2, "num_generations": 2, "kl_coef": 0.0, "sft_steps": 1, **SGD}

# Case -> the trainer, and its options beside those of the trainer.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cispo": ("cispo", CISPO),
    "cispo-adamw": ("cispo", {**CISPO, "optim": "adamw_torch", "learning_rate": 1e-2, "adam_epsilon": 1e-3}),
    "cispo-accumulated": ("cispo", {**CISPO, "top_entropy_quantile": 1.0}),
    "cispo-kl": ("cispo", {**CISPO, "beta": 0.1}),
    "cispo-ema": ("cispo", CISPO),
    "ppo": ("ppo", PPO),
    "ppo-accumulated": ("ppo", PPO),
    "ppo-separate": ("ppo", {**PPO, "value_model": "separate"}),
    "ppo-warmup": ("ppo", {**PPO, "value_warmup_steps": 2, "lam_value": 1.0}),
    "hybrid-alternate": ("hybrid", HYBRID),
    "hybrid-joint": ("hybrid", {**HYBRID, "mode": "joint"}),
    "hybrid-gate": ("hybrid", {**HYBRID, "mode": "gate", "gate": 0.5}),
    "hybrid-buffer": ("hybrid", {**HYBRID, "mode": "buffer", "buffer_size": 8}),
}


def letters_of_half(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The share of letters; the same for every completion of the other half, which thus has no advantage.

    Of two processes the second has that half, in each step.
    """
    return [
        0.5 if int(prompt[2]) % 2 else sum(c.isalpha() for c in text) / max(len(text), 1)
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def score_of_half(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """As `letters_of_half`, and no score at all for the other half."""
    shares = letters_of_half(prompts, completions)
    return [None if int(prompt[2]) % 2 else share for prompt, share in zip(prompts, shares, strict=True)]


def parity(completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(map(ord, text)) % 2 == 0) for text in completions]


def make(case: str, path: str, processes: int, **changed: Any) -> Any:
    """The trainer of a case, "-lora" after whose name makes it train an adapter."""
    name, lora = case.removesuffix("-lora"), case.endswith("-lora")
    kind, options = CASES[name]
    accumulation = 2 if name.endswith("-accumulated") else 1
    trainer_class, config_class = TRAINERS[kind]
    args = config(
        config_class,
        **{
            "per_device_train_batch_size": ROWS // accumulation // processes,
            "gradient_accumulation_steps": accumulation,
            "shuffle_dataset": False,
            "max_steps": 4,
            **options,
            **changed,
        },
    )
    data: dict[str, Any] = {"reward_funcs": letters_of_half if kind == "cispo" else score_of_half}
    data["rollout_func"] = fixed_rollout
    if kind == "hybrid":
        data = {
            "train_dataset": demonstrations(ROWS // 2),
            "reward_funcs": parity,
            "rollout_func": ragged_rollout,
        }
    if name == "cispo-ema":
        spec = {"type": "levenshtein", "target": "wanted", "postprocess": [{"type": "ema_normalize", "decay": 0.9}]}
        data["reward_funcs"], _ = make_reward_funcs(spec)
        data["train_dataset"] = PROMPTS.map(lambda row: {"wanted": row["prompt"]})
    if lora:
        data["peft_config"] = LoraConfig(r=4, target_modules="all-linear", init_lora_weights="gaussian")
    return make_trainer(trainer_class, path, args, **data)


def ended(trainer: Any) -> dict[str, Any]:
    """What is compared: the weights, whole, the metrics of this process and what its rewards remember."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    rewards = [reward.state_dict() for reward in trainer.reward_funcs if hasattr(reward, "state_dict")]
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    seen = {
        "log": [metrics(row) for row in trainer.state.log_history],
        "rewards": rewards,
        "zero_stage": plugin and plugin.zero_stage,
        "in_parts": not any(parameter.numel() for parameter in trainer.model.parameters()),
    }
    return {"weights": {name: x.detach().clone() for name, x in (weights or {}).items()}, "seen": gather_object([seen])}


def metrics(row: dict[str, Any]) -> dict[str, Any]:
    """Without measures of time, and of the work saved, which depends on how many rows a process has."""
    return {name: x for name, x in row.items() if not any(part in name for part in ("time", "per_second", "lean/"))}


def run(
    case: str, path: str, processes: int, folder: str | None = None, resume_at: int | None = None
) -> dict[str, Any]:
    """Train, and save the model into `folder` if there is one; with `resume_at` from the checkpoint of that step on,
    which a first run wrote."""
    saving = {"output_dir": f"{folder}/run"} if folder else {}
    if resume_at:
        saving |= {"save_strategy": "steps", "save_steps": resume_at}
        make(case, path, processes, **saving).train()
    trainer = make(case, path, processes, **saving)
    trainer.train(resume_from_checkpoint=f"{folder}/run/checkpoint-{resume_at}" if resume_at else None)
    result = ended(trainer)
    if folder:
        trainer.save_model(f"{folder}/model")
        if hasattr(trainer, "save_merged"):
            trainer.save_merged(f"{folder}/merged")
        result["logits"] = logits(trainer.model_wrapped)
    return result


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=torch.arange(3, 43).view(2, 20), use_cache=False).logits
    return result
