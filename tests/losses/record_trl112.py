"""Record what TRL 1.12's `PPOTrainer` computes, as the expected values of test_trl112.py.

    pip install --no-deps --target /tmp/trl112 trl==1.12.0
    PYTHONPATH=/tmp/trl112 python tests/losses/record_trl112.py

TRL 1.12's maths stands in the middle of its `train()`. This runs one update of it on tiny random models and reads the
local variables of `train()` whenever it calls one of its own masked reductions; nothing here computes a result.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # noqa: TID251

FILE = Path(__file__).with_name("trl112_oracle.json")
WORDS = 12
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "discounted": {"gamma": 0.97, "lam": 0.8, "kl_estimator": "k3", "kl_coef": 0.2},
    "whitened": {"whiten_rewards": True, "missing_eos_penalty": 1.0, "lam": 1.0},
}


def main() -> None:
    assert trl.__version__ == "1.12.0", f"this records TRL 1.12.0, found {trl.__version__}"
    recorded = {name: record(options) for name, options in SETTINGS.items()}
    FILE.write_text(json.dumps(recorded, separators=(",", ":")) + "\n")
    print(f"{FILE}: {FILE.stat().st_size} bytes")


def record(options: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    shape = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(**shape, num_attention_heads=2, pad_token_id=0, eos_token_id=1, initializer_range=0.2)
    vocabulary = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, WORDS)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary)), pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    policy, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
    critic, rewarder = (LlamaForSequenceClassification(config) for _ in range(2))
    for model in (critic, rewarder):
        model.config.num_labels = 1
        model.score = torch.nn.Linear(16, 1, bias=False)
    prompts = torch.randint(2, WORDS, (16, 4)).tolist()
    args = PPOConfig(
        tempfile.mkdtemp(),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        num_ppo_epochs=2,
        total_episodes=16,
        response_length=9,
        stop_token="eos",
        learning_rate=0.02,
        num_sample_generations=0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        **options,
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=rewarder,
        value_model=critic,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts]),
    )
    rollout: dict[str, Any] = {}
    updates: list[dict[str, Any]] = []
    calls = 0
    whiten, mean = ppo_trainer.masked_whiten, ppo_trainer.masked_mean

    def watched_whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
        result = whiten(values, mask, shift_mean)
        train = sys._getframe(1).f_locals
        if shift_mean:
            names = ("logprobs", "ref_logprobs", "scores", "values", "rewards", "padding_mask", "padding_mask_p1")
            rollout.update({name: train[name].tolist() for name in (*names, "kl", "actual_end", "returns")})
            rollout.update(advantages=train["advantages"].tolist(), whitened_advantages=result.tolist())
        else:
            rollout.update(rewards_before_whitening=values.tolist())
        return result

    def watched_mean(values: torch.Tensor, mask: torch.Tensor, axis: Any = None) -> torch.Tensor:
        nonlocal calls
        result = mean(values, mask, axis)
        if sys._getframe(1).f_code.co_name != "train":
            return result
        calls, train = calls + 1, sys._getframe(1).f_locals
        if calls % 4 == 0:  # the last reduction of a micro-batch: the share of clipped ratios
            names = ("micro_batch_inds", "new_logprobs", "vpred")
            scalars = {name: train[name].item() for name in ("pg_loss", "vf_loss", "vf_clipfrac", "loss")}
            updates.append({name: train[name].tolist() for name in names} | scalars | {"pg_clipfrac": result.item()})
        return result

    ppo_trainer.masked_whiten, ppo_trainer.masked_mean = watched_whiten, watched_mean
    try:
        trainer.train()
    finally:
        ppo_trainer.masked_whiten, ppo_trainer.masked_mean = whiten, mean
    settings = {name: getattr(args, name) for name in SETTINGS["discounted"] | SETTINGS["whitened"]}
    settings |= {name: getattr(args, name) for name in ("cliprange", "cliprange_value", "vf_coef")}
    return {"settings": settings, "rollout": rollout, "updates": updates}


if __name__ == "__main__":
    main()
