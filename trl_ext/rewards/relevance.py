"""How well a completion answers its prompt."""

from typing import Literal

import torch

from trl_ext.errors import ConfigError
from trl_ext.rewards.classifiers import classify, label_names
from trl_ext.rewards.embedding import MINILM, Embedder, unit_interval
from trl_ext.rewards.models import MAX_CHARACTERS, is_empty
from trl_ext.rewards.registry import register_reward

CROSS_ENCODER = "cross-encoder/ms-marco-MiniLM-L6-v2"


@register_reward("qa_relevance", leans_on="sentence-transformers", extra="rewards", needs_model=True, cost="100 ms")
class QaRelevance(Embedder):
    """How relevant the completion is to the prompt, by their sentence embeddings or by a cross-encoder.

    With `method` "embedding" it is 0.5 * (cos + 1), where cos is between the embeddings of prompt and completion:
    unrelated texts have about 0.5, and a completion that repeats the prompt has 1, so do not use it alone. With
    "cross_encoder" it is sigmoid(logit) of a model that reads prompt and completion as a pair, as MS MARCO's rankers do
    (Nogueira and Cho, arXiv 1901.04085): unrelated texts have about 0. That needs no sentence-transformers.

    In [0, 1]. An empty completion scores 0. None where the prompt is empty. Of a chat prompt the last message counts.
    The first 20,000 characters (`MAX_CHARACTERS`) of a text are read, and of these what the model takes; a
    cross-encoder reads at most 512 tokens of a pair, of which the longer text loses its end.

    Args:
        model: a folder or a Hub name. By embedding a model of sentence-transformers, all-MiniLM-L6-v2 if unset (see
            `cosine_sts`; those trained on questions and answers, multi-qa-*, fit best); for a cross-encoder a
            sequence-classification checkpoint with one label, cross-encoder/ms-marco-MiniLM-L6-v2 if unset.
        device: of the embeddings; by default this process's, where a cross-encoder always is.

    Raises when the model is first used:
        ConfigError: the cross-encoder has more than one label.
    """

    def __init__(
        self,
        model: str | None = None,
        method: Literal["embedding", "cross_encoder"] = "embedding",
        batch_size: int = 32,
        device: str | None = None,
    ):
        super().__init__(model or (MINILM if method == "embedding" else CROSS_ENCODER), batch_size, device)
        if device is not None and method == "cross_encoder":
            raise ValueError(f"device = {device!r}: must not be given with method = 'cross_encoder'")
        self.method = method

    def __call__(self, completions: list[str], prompts: list[str]) -> list[float | None]:
        pairs = list(zip(prompts, completions, strict=True))
        scores: list[float | None] = [None if self._is_empty(prompt) else 0.0 for prompt in prompts]
        known = [row for row, pair in enumerate(pairs) if not any(map(self._is_empty, pair))]
        read = self._by_embedding if self.method == "embedding" else self._by_cross_encoder
        for row, score in zip(known, read([pairs[row] for row in known]), strict=True):
            scores[row] = score
        return scores

    def _is_empty(self, text: str) -> bool:
        return is_empty(text[:MAX_CHARACTERS])

    def _by_embedding(self, pairs: list[tuple[str, str]]) -> list[float]:
        vectors = self.vectors([text for pair in pairs for text in pair])
        return [unit_interval(float(vectors[prompt] @ vectors[completion])) for prompt, completion in pairs]

    def _by_cross_encoder(self, pairs: list[tuple[str, str]]) -> list[float]:
        names = label_names(self.model)
        if len(names) != 1:
            raise ConfigError(f"model = {self.model!r}: must have one label (see `classifier`), its labels are {names}")
        logits = torch.tensor(classify(self.model, pairs, self.batch_size, None), dtype=torch.float64)
        scores: list[float] = logits.sigmoid().flatten().tolist()
        return scores
