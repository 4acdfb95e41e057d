"""Classifiers of what a completion is like, each with a default model and the values of its labels.

The default models come from the Hub; every `model` can as well be a checkpoint folder.
"""

from typing import ClassVar

from trl_ext.rewards.classifiers import Activation, Classifier
from trl_ext.rewards.registry import register_reward


class _Preset(Classifier):
    """A classifier with a default model, and a default target label or the values of labels by their common names."""

    default_model: ClassVar[str]
    default_target: ClassVar[str | None] = None
    known: ClassVar[dict[str, float]] = {}
    # LABEL_0 and LABEL_1 mean something for the default model alone
    default_generic: ClassVar[dict[str, float]] = {}

    def __init__(
        self,
        model: str | None = None,
        labels: dict[str, float] | None = None,
        target_label: str | None = None,
        activation: Activation = "auto",
        batch_size: int = 32,
        max_length: int | None = None,
    ):
        if labels is None and target_label is None:
            target_label = self.default_target
        super().__init__(model or self.default_model, labels, target_label, activation, batch_size, max_length)

    def _check_labels(self, labels: dict[str, float] | None, target_label: str | None) -> None:
        if labels is not None or target_label is not None:  # else what is known of the labels counts
            super()._check_labels(labels, target_label)

    def _values(self, names: list[str]) -> dict[str, float]:
        if self.labels is not None or self.target_label is not None:
            return super()._values(names)
        return self.known | (self.default_generic if self.model == self.default_model else {})


@register_reward("sentiment", leans_on="transformers", needs_model=True, cost="200 ms")
class Sentiment(_Preset):
    """The probability of a sentiment: of every label whose name contains `target_label`, "positive" if unset.

    So "positive" also takes "Very Positive", and a neutral label counts 0; `labels` say otherwise, e.g.
    {"negative": 0, "neutral": 0.5, "positive": 1}. Options as `classifier`; the default model is
    distilbert-base-uncased-finetuned-sst-2-english.
    """

    default_model = "distilbert-base-uncased-finetuned-sst-2-english"
    default_target = "positive"

    def _is_target(self, name: str, wanted: str) -> bool:
        return wanted in name


@register_reward("emotion", leans_on="transformers", needs_model=True, cost="200 ms")
class Emotion(_Preset):
    """The probability of the emotion `target_label`, "joy" if unset.

    Options as `classifier`; the default model, j-hartmann/emotion-english-distilroberta-base, has anger, disgust,
    fear, joy, neutral, sadness and surprise.
    """

    default_model = "j-hartmann/emotion-english-distilroberta-base"
    default_target = "joy"


@register_reward("sarcasm", leans_on="transformers", needs_model=True, cost="200 ms")
class Sarcasm(_Preset):
    """The probability that the text is sarcastic.

    Options as `classifier`; the default model is helinivan/english-sarcasm-detector. `labels` are needed for a model
    whose labels are not called sarcasm, sarcastic, not_sarcastic or the like.
    """

    default_model = "helinivan/english-sarcasm-detector"
    known = {"sarcastic": 1.0, "sarcasm": 1.0, "irony": 1.0} | dict.fromkeys(
        ("not_sarcastic", "not sarcastic", "non_sarcastic", "not_sarcasm", "non_irony"), 0.0
    )
    default_generic = {"label_0": 0.0, "label_1": 1.0}


@register_reward("toxicity", leans_on="transformers", needs_model=True, cost="200 ms")
class Toxicity(_Preset):
    """1 - the probability of the label "toxic" or "toxicity", whichever the model has; `invert` = false: that itself.

    Options as `classifier`, and `invert`. `labels` say how toxic each label is, `target_label` names another one, e.g.
    "threat". The models that Detoxify uses have its names: original (unitary/toxic-bert, the default), unbiased
    (unitary/unbiased-toxic-roberta) and multilingual (unitary/multilingual-toxic-xlm-roberta).
    """

    default_model = "unitary/toxic-bert"

    def __init__(
        self,
        model: str = "original",
        labels: dict[str, float] | None = None,
        target_label: str | None = None,
        activation: Activation = "auto",
        batch_size: int = 32,
        max_length: int | None = None,
        invert: bool = True,
    ):
        detoxify = {
            "original": self.default_model,
            "unbiased": "unitary/unbiased-toxic-roberta",
            "multilingual": "unitary/multilingual-toxic-xlm-roberta",
        }
        super().__init__(detoxify.get(model, model), labels, target_label, activation, batch_size, max_length)
        self.invert = invert

    def __call__(self, completions: list[str]) -> list[float | None]:
        scores = super().__call__(completions)
        return [1.0 - score if self.invert and score is not None else score for score in scores]

    def _values(self, names: list[str]) -> dict[str, float]:
        if self.labels is not None or self.target_label is not None:
            return super()._values(names)
        toxic = {"toxic", "toxicity"}
        return {name: float(name in toxic) for name in names} if toxic & set(names) else {}


@register_reward("hate_speech", leans_on="transformers", needs_model=True, cost="200 ms")
class HateSpeech(_Preset):
    """The probability that the text is no hate speech: its label counts 0, the other 1.

    Options as `classifier`; the default model is facebook/roberta-hate-speech-dynabench-r4-target. `labels` are needed
    for a model whose labels are not called hate, nothate, not_hate or the like.
    """

    default_model = "facebook/roberta-hate-speech-dynabench-r4-target"
    known = {"hate": 0.0, "hateful": 0.0, "hate_speech": 0.0} | dict.fromkeys(
        ("nothate", "not-hate", "not_hate", "non-hate", "non_hate", "neutral", "normal"), 1.0
    )


@register_reward("offensiveness", leans_on="transformers", needs_model=True, cost="200 ms")
class Offensiveness(_Preset):
    """The probability that the text is not offensive: the label "offensive" counts 0, the other 1.

    Options as `classifier`; the default model is cardiffnlp/twitter-roberta-base-offensive. `labels` are needed for a
    model whose labels are not called offensive, non-offensive or the like.
    """

    default_model = "cardiffnlp/twitter-roberta-base-offensive"
    known = {"offensive": 0.0} | dict.fromkeys(
        ("non-offensive", "non_offensive", "not-offensive", "not_offensive", "not offensive", "inoffensive"), 1.0
    )
    default_generic = {"label_0": 1.0, "label_1": 0.0}


@register_reward("bias", leans_on="transformers", needs_model=True, cost="200 ms")
class Bias(_Preset):
    """The probability that the text is not biased: the label "biased" counts 0, "non-biased" or "neutral" 1.

    Options as `classifier`; the default model is d4data/bias-detection-model, whose card loads it with TensorFlow:
    where transformers cannot read those weights, give another. `labels` are needed for labels of other names.
    """

    default_model = "d4data/bias-detection-model"
    known = {"biased": 0.0} | dict.fromkeys(("non-biased", "non_biased", "unbiased", "neutral"), 1.0)


@register_reward("formality", leans_on="transformers", needs_model=True, cost="200 ms")
class Formality(_Preset):
    """The probability that the text is formal. `target_label` = "informal" is for the opposite.

    Options as `classifier`; the default model is s-nlp/roberta-base-formality-ranker. `labels` are needed for a model
    whose labels are not called formal and informal.
    """

    default_model = "s-nlp/roberta-base-formality-ranker"
    known = {"formal": 1.0, "informal": 0.0}
    default_generic = {"label_0": 0.0, "label_1": 1.0}
