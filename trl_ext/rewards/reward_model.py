"""The score of a preference reward model."""

import math
from typing import Any

from trl_ext.errors import RewardError
from trl_ext.rewards.models import (
    CHARACTERS_PER_TOKEN,
    check_batching,
    load_model,
    run_by_length,
    token_limit,
    tokenizable,
)
from trl_ext.rewards.registry import register_reward

LIMIT = 100.0


@register_reward("reward_model", range=(-LIMIT, LIMIT), leans_on="transformers", needs_model=True, cost="1 s")
class RewardModel:
    """The output of a reward model for prompt and completion, cut to [-100, 100]; with `squash` its sigmoid, in [0, 1].

    Any `AutoModelForSequenceClassification` with one label. Models trained on pairs (Bradley and Terry, 1952) have
    outputs whose differences are log-odds of preference; zero means nothing. The tokenizer's chat template, where it
    has one, is applied to a user's turn (the prompt, of a chat its last message) and an assistant's turn (the
    completion); otherwise prompt and completion are encoded as a pair of texts. The end of what is longer than
    `max_length` tokens, or than the model takes, is cut off. An empty completion is rated as any other; None where
    prompt and completion have no token at all. Lone surrogates are read as "?".

    Args:
        model: a folder or a Hub name.
        squash: give the sigmoid of the output.
    """

    def __init__(self, model: str, squash: bool = False, max_length: int = 2048, batch_size: int = 8):
        check_batching(batch_size, max_length)
        self.model, self.squash, self.max_length, self.batch_size = model, squash, max_length, batch_size

    def __call__(self, completions: list[str], prompts: list[str] | None = None) -> list[float | None]:
        model, tokenizer = load_model("AutoModelForSequenceClassification", self.model)
        if model.config.num_labels != 1:
            raise RewardError(
                f"reward_model: {self.model!r} has {model.config.num_labels} labels: must be 1 (see `classifier`)"
            )
        pairs = list(zip(prompts or [""] * len(completions), completions, strict=True))
        distinct = list(dict.fromkeys(pairs))
        if model.config.pad_token_id is None:  # decoders then refuse a batch: they look for the last real token by it
            model.config.pad_token_id = tokenizer.pad_token_id
        padded = model.config.pad_token_id is not None and tokenizer.pad_token_id is not None

        def run(batch: list[dict[str, Any]]) -> list[float | None]:
            together = tokenizer.pad(batch, padding=padded, padding_side="right", return_tensors="pt")
            outputs = model(**together.to(model.device)).logits[:, 0].float()
            return [self._bounded(output) for output in outputs.tolist()]

        rows = {pair: self._encode(model, tokenizer, *pair) for pair in distinct}
        known = {pair: row for pair, row in rows.items() if row["input_ids"]}
        scores = run_by_length(
            list(known.values()), lambda row: len(row["input_ids"]), run, self.batch_size if padded else 1
        )
        by_pair = dict(zip(known, scores, strict=True))
        return [by_pair.get(pair) for pair in pairs]

    def _encode(self, model: Any, tokenizer: Any, prompt: str, completion: str) -> dict[str, Any]:
        limit = min(self.max_length, token_limit(model, tokenizer, unknown=self.max_length))
        prompt, completion = (tokenizable(text, CHARACTERS_PER_TOKEN * limit) for text in (prompt, completion))
        if not getattr(tokenizer, "chat_template", None):
            return dict(tokenizer(prompt, completion, truncation=True, max_length=limit))
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        # the template has written the special tokens
        return dict(tokenizer(text, add_special_tokens=False, truncation=True, max_length=limit))

    def _bounded(self, output: float) -> float | None:
        if math.isnan(output):  # an overflow in half precision
            return None
        output = min(LIMIT, max(-LIMIT, output))
        return 1 / (1 + math.exp(-output)) if self.squash else output
