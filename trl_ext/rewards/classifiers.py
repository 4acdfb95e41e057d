"""What a sequence-classification checkpoint, any one, says of a completion."""

import inspect
import math
import sys
from collections.abc import Sequence
from typing import Literal

import torch

from trl_ext.errors import ConfigError
from trl_ext.rewards.models import (
    check_batching,
    load_model,
    run_by_length,
    token_limit,
    tokenizable,
)
from trl_ext.rewards.registry import register_reward

MAX_TOKENS = 512

Activation = Literal["auto", "softmax", "sigmoid"]


def label_names(model_name: str) -> list[str]:
    """The labels of a sequence-classification checkpoint, in the order of its logits."""
    id2label = load_model("AutoModelForSequenceClassification", model_name)[0].config.id2label
    return [str(id2label[index]) for index in range(len(id2label))]


def classify(
    model_name: str, items: Sequence[tuple[str, ...]], batch_size: int, max_length: int | None
) -> list[list[float]]:
    """The logits of each item, a tuple of one text or of two (a pair): `len(items)` rows of one number per label.

    Of each text the first 20,000 characters (`MAX_CHARACTERS`) are read; an item is cut to `max_length` tokens (of a
    pair, the longer text), which defaults to the model's maximum and at most 512.

    Raises:
        ConfigError: `max_length` is more than the model takes.
    """
    from transformers.data.data_collator import pad_without_fast_tokenizer_warning

    model, tokenizer = load_model("AutoModelForSequenceClassification", model_name)
    most = token_limit(model, tokenizer, unknown=sys.maxsize)
    if max_length is not None and max_length > most:
        raise ConfigError(f"max_length = {max_length}: must be at most {most}, which is what {model_name!r} takes")
    if tokenizer.pad_token_id is None:  # a decoder's: any token does, attention masks it
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if getattr(model.config, "pad_token_id", None) is None:  # a decoder looks for its last token that is no padding
        model.config.pad_token_id = tokenizer.pad_token_id
    accepted = inspect.signature(model.forward).parameters

    def encode(item: tuple[str, ...]) -> dict[str, list[int]]:
        encoded = tokenizer(*map(tokenizable, item), truncation=True, max_length=max_length or min(most, MAX_TOKENS))
        row: dict[str, list[int]] = {key: values for key, values in encoded.items() if key in accepted}
        if not row["input_ids"]:  # no text, and a tokenizer that adds no special tokens: a model needs one token
            row = {key: [{"input_ids": tokenizer.pad_token_id, "attention_mask": 1}.get(key, 0)] for key in row}
        return row

    def run(batch: list[dict[str, list[int]]]) -> list[list[float]]:
        padded = pad_without_fast_tokenizer_warning(tokenizer, batch, padding_side="right", return_tensors="pt")
        logits: list[list[float]] = model(**padded.to(model.device)).logits.float().tolist()
        return logits

    return run_by_length(list(map(encode, items)), lambda row: len(row["input_ids"]), run, batch_size)


@register_reward("classifier", leans_on="transformers", needs_model=True, cost="200 ms")
class Classifier:
    """The expected value of a text's label: sum over the labels of p(label) * value(label).

    The range is that of the values, (0, 1) with `target_label`. Empty text is scored as the model scores it.

    Options:
        model: a checkpoint folder or a name on the Hub.
        labels: the value of every label of the model, by name, whatever the case.
        target_label: short for: this label counts 1, the others 0. One of the two must be given.
        activation: auto is sigmoid for a multi-label model (`problem_type`) and for a single label, else softmax. With
            sigmoid the probabilities do not sum to 1: the score is clipped to between the lowest and the highest of
            the values and 0.
        batch_size: completions per forward.
        max_length: tokens that are read; the model's maximum, at most 512, if unset. And 20,000 characters at most.

    Raises when the model is first used:
        ConfigError: the labels and those of the model do not fit; the model's are listed.
    """

    def __init__(
        self,
        model: str,
        labels: dict[str, float] | None = None,
        target_label: str | None = None,
        activation: Activation = "auto",
        batch_size: int = 32,
        max_length: int | None = None,
    ):
        if labels is not None and target_label is not None:
            raise ValueError(f"target_label = {target_label!r}: must not be given beside labels")
        self._check_labels(labels, target_label)
        check_batching(batch_size, max_length)
        self.model, self.labels, self.target_label = model, labels, target_label
        self.activation, self.batch_size, self.max_length = activation, batch_size, max_length

    def _check_labels(self, labels: dict[str, float] | None, target_label: str | None) -> None:
        if labels is None and target_label is None:
            raise ValueError("labels = None: must be given, or target_label")
        if target_label is not None and not target_label.strip():
            raise ValueError(f"target_label = {target_label!r}: must be the name of a label")
        for name, value in (labels or {}).items():
            if not math.isfinite(value):
                raise ValueError(f"labels.{name} = {value}: must be a finite number")
        if labels is not None and len({name.lower() for name in labels}) < max(1, len(labels)):
            raise ValueError(f"labels = {labels}: must name each label once, whatever the case")

    def __call__(self, completions: list[str]) -> list[float | None]:
        names = label_names(self.model)
        values = torch.tensor(self._checked_values(names), dtype=torch.float64)
        config = load_model("AutoModelForSequenceClassification", self.model)[0].config
        multi_label = config.problem_type == "multi_label_classification" or len(names) == 1
        sigmoid = self.activation == "sigmoid" or (self.activation == "auto" and multi_label)
        low, high = float(values.min()), float(values.max())
        if sigmoid:
            low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            raise ConfigError(f"labels: all texts would score {low}; the labels of {self.model!r} are {names}")
        rows = classify(self.model, [(text,) for text in completions], self.batch_size, self.max_length)
        logits = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(names))
        p = logits.sigmoid() if sigmoid else logits.softmax(-1)
        scores: list[float | None] = (p @ values).clamp(low, high).tolist()
        return scores

    def _checked_values(self, names: list[str]) -> list[float]:
        values = self._values([name.lower() for name in names])
        missing = [name for name in names if name.lower() not in values]
        if missing:
            raise ConfigError(f"labels: no value for {missing}; the labels of {self.model!r} are {names}")
        return [values[name.lower()] for name in names]

    def _values(self, names: list[str]) -> dict[str, float]:
        """The value of each label, by lower-case name."""
        if self.labels is not None:
            values = {name.lower(): value for name, value in self.labels.items()}
            for name in values:
                if name not in names:
                    raise ConfigError(f"labels.{name}: no such label; the labels of {self.model!r} are {names}")
            return values
        wanted = str(self.target_label).lower()
        if not any(self._is_target(name, wanted) for name in names):
            raise ConfigError(f"target_label = {wanted!r}: no such label; the labels of {self.model!r} are {names}")
        return {name: float(self._is_target(name, wanted)) for name in names}

    def _is_target(self, name: str, wanted: str) -> bool:
        return name == wanted
