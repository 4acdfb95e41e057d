"""What a model of natural-language inference says of a completion beside its reference, its prompt or a topic.

In all of them a blank completion says nothing and scores 0. Texts are cut as `classifiers.classify` says.
"""

import abc
from typing import Any, Literal

from trl_ext.errors import ConfigError, RewardError
from trl_ext.rewards.classifiers import classify, label_names
from trl_ext.rewards.models import check_batching
from trl_ext.rewards.registry import register_reward

Label = Literal["entailment", "neutral", "contradiction"]

DEFAULT_MODEL = "cross-encoder/nli-deberta-v3-base"


class _Inference:
    """A checkpoint for natural-language inference, and the batches that it is run in."""

    def __init__(self, model: str = DEFAULT_MODEL, batch_size: int = 32, max_length: int | None = None):
        check_batching(batch_size, max_length)
        self.model, self.batch_size, self.max_length = model, batch_size, max_length

    def probabilities(self, pairs: list[tuple[str, str]], labels: list[Label], among: bool = False) -> Any:
        """The probability of each label for each (premise, hypothesis), by softmax over all labels of the model.

        `among`: by softmax over `labels` alone. A float64 tensor of shape (len(pairs), len(labels)).

        Raises:
            ConfigError: the model has no such label.
        """
        import torch

        names = label_names(self.model)
        places = []
        for label in labels:  # "entailment", "ENTAILMENT", "entail", but not "not_entailment"
            stem = {"entailment": "entail", "contradiction": "contradict"}.get(label, label)
            found = [place for place, name in enumerate(names) if name.strip().lower().startswith(stem)]
            if len(found) != 1:
                raise ConfigError(f"model = {self.model!r}: must have one label for {label}, its labels are {names}")
            places += found
        rows = classify(self.model, pairs, self.batch_size, self.max_length)
        logits = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(names))
        return logits[:, places].softmax(-1) if among else logits.softmax(-1)[:, places]


def _references(target: Any) -> list[str]:
    references = target if isinstance(target, list | tuple) else [target]
    return [str(reference) for reference in references if reference is not None]


def _best(pairs_of: list[list[tuple[str, str]]], completions: list[str], score: Any) -> list[float | None]:
    """The best score over the pairs of each completion, all run as one; None where it has none, 0 where it is blank."""
    rows = [row for row, text in enumerate(completions) if text.strip() and pairs_of[row]]
    flat = iter(score([pair for row in rows for pair in pairs_of[row]]).tolist() if rows else [])
    scores: list[float | None] = [0.0 if pairs else None for pairs in pairs_of]
    for row in rows:
        scores[row] = max(next(flat) for _ in pairs_of[row])
    return scores


@register_reward("nli", leans_on="transformers", needs_model=True, cost="200 ms")
class NLI(_Inference):
    """The probability of a label of natural-language inference; the completion is the hypothesis.

    Several references: the best counts. Without the premise (no reference, no prompt) there is no score.

    Options:
        model: a checkpoint folder or a name on the Hub, whose labels are called entailment, neutral, contradiction.
        premise: the prompt, or the reference (target).
        label: the label whose probability counts.
        invert: score 1 - that probability; a blank completion still scores 0.
        batch_size: pairs per forward.
        max_length: tokens that are read of a pair; the model's maximum, at most 512, if unset.

    Raises when the model is first used:
        ConfigError: the model has no such label; its labels are listed.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        premise: Literal["prompt", "target"] = "target",
        label: Label = "entailment",
        invert: bool = False,
        batch_size: int = 32,
        max_length: int | None = None,
    ):
        super().__init__(model, batch_size, max_length)
        self.premise, self.label, self.invert = premise, label, invert

    def __call__(
        self, completions: list[str], target: list[Any] | None = None, prompts: list[str] | None = None
    ) -> list[float | None]:
        premises: list[list[str]]
        if self.premise == "prompt":
            premises = [[prompt] if prompt else [] for prompt in prompts or [""] * len(completions)]
        elif target is None:
            raise RewardError('nli: needs a column with the references: name one with "target" in the spec')
        else:
            premises = [_references(references) for references in target]

        def score(pairs: list[tuple[str, str]]) -> Any:
            p = self.probabilities(pairs, [self.label])[:, 0]
            return 1 - p if self.invert else p

        pairs_of = [[(premise, c) for premise in known] for c, known in zip(completions, premises, strict=True)]
        return _best(pairs_of, completions, score)


class _AgainstReference(_Inference, abc.ABC):
    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        pairs_of = [[(known, c) for known in _references(t)] for c, t in zip(completions, target, strict=True)]
        return _best(pairs_of, completions, self.score)

    @abc.abstractmethod
    def score(self, pairs: list[tuple[str, str]]) -> Any:
        """The score of each (reference, completion) pair."""


@register_reward("factual_accuracy", leans_on="transformers", needs_model=True, cost="200 ms")
class FactualAccuracy(_AgainstReference):
    """The probability that the reference entails the completion. Options as `nli`. Several references: the best."""

    def score(self, pairs: list[tuple[str, str]]) -> Any:
        return self.probabilities(pairs, ["entailment"])[:, 0]


@register_reward("truthfulness", leans_on="transformers", needs_model=True, cost="200 ms")
class Truthfulness(_AgainstReference):
    """(1 + p(entailment) - p(contradiction)) / 2, the reference being the premise: what it leaves open gives 0.5.

    Options as `nli`. Several references: the best.
    """

    def score(self, pairs: list[tuple[str, str]]) -> Any:
        p = self.probabilities(pairs, ["entailment", "contradiction"])
        return ((1 + p[:, 0] - p[:, 1]) / 2).clamp(0, 1)


@register_reward("contradiction", leans_on="transformers", needs_model=True, cost="200 ms")
class Contradiction(_AgainstReference):
    """1 - the probability that the completion contradicts the reference. Options as `nli`. Several: the best."""

    def score(self, pairs: list[tuple[str, str]]) -> Any:
        return (1 - self.probabilities(pairs, ["contradiction"])[:, 0]).clamp(0, 1)


@register_reward("topic_consistency", leans_on="transformers", needs_model=True, cost="200 ms")
class TopicConsistency(_Inference):
    """The probability that the completion entails "This text is about {topic}.", which needs no training on topics.

    By softmax over entailment and contradiction alone, as the zero-shot pipeline of transformers with `multi_label`
    (Yin et al., arXiv 1909.00161). `topic` is the reference if unset; of several the best counts. Other options as
    `nli`.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        topic: str | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
    ):
        super().__init__(model, batch_size, max_length)
        if topic is not None and not topic.strip():
            raise ValueError(f"topic = {topic!r}: must not be blank")
        self.topic = topic

    def __call__(self, completions: list[str], target: list[Any] | None = None) -> list[float | None]:
        if self.topic is None and target is None:
            raise RewardError('topic_consistency: needs "topic", or a column of topics named with "target" in the spec')
        topics = [self.topic] * len(completions) if self.topic is not None else target or []
        pairs_of = [
            [(c, f"This text is about {topic}.") for topic in _references(t)]
            for c, t in zip(completions, topics, strict=True)
        ]
        return _best(
            pairs_of,
            completions,
            lambda pairs: self.probabilities(pairs, ["entailment", "contradiction"], among=True)[:, 0],
        )
