"""How likely a language model finds a completion.

Texts are scored after the model's start token (its `bos`, else its `eos` token, as lm-evaluation-harness does), so that
their first token counts. A tokenizer that has neither leaves the first token out. The first `max_length` tokens of a
completion count, or what the model takes, if that is less; a context before it gets the room that is left and loses its
beginning. Empty completions score 0.
"""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trl_ext.errors import RewardError
from trl_ext.rewards.models import (
    CHARACTERS_PER_TOKEN,
    check_batching,
    is_empty,
    load_model,
    pad_right,
    run_by_length,
    token_limit,
    tokenizable,
)
from trl_ext.rewards.registry import register_reward

_AT_ONCE = 128  # tokens whose logits are in memory at once
_IN_CACHE = (
    8  # of these, tokens whose softmax a CPU takes at once: half the time, as their float32 logits stay in its cache
)
_PLACEHOLDER = re.compile(r"\{(prompt|target)\}")


@dataclass(frozen=True)
class _Scored:
    """A text under a model: the mean negative log-likelihood per token in nats, and its token ids."""

    nll: float
    ids: list[int]

    @property
    def distinct_3grams(self) -> float:
        """Distinct token 3-grams / token 3-grams: 1 where none is repeated or there is none."""
        grams = list(zip(self.ids, self.ids[1:], self.ids[2:], strict=False))
        return len(set(grams)) / len(grams) if grams else 1.0


class _LanguageModel:
    """The shared options. The logits of 128 tokens are in memory at once, where the model lets them be had apart."""

    def __init__(self, model: str, max_length: int, batch_size: int):
        check_batching(batch_size, max_length, shortest=2)
        self.model, self.max_length, self.batch_size = model, max_length, batch_size

    def _score(self, contexts: Sequence[str], texts: Sequence[str]) -> list[_Scored | None]:
        """Each text after its context; None for an empty text, and for one token after nothing."""
        model, tokenizer = load_model("AutoModelForCausalLM", self.model)
        limit = min(self.max_length, token_limit(model, tokenizer, unknown=self.max_length))
        distinct = list(dict.fromkeys(zip(contexts, texts, strict=True)))
        rows = [self._encode(tokenizer, limit, context, text) for context, text in distinct]
        known = [i for i, (before, ids) in enumerate(rows) if len(ids) > (not before)]

        def run(batch: list[tuple[list[int], list[int]]]) -> list[_Scored]:
            ids, _ = pad_right([before + ids for before, ids in batch], model.device)
            spans = [(max(1, len(before)), len(before) + len(after)) for before, after in batch]
            rows = torch.cat([torch.full((end - first,), row) for row, (first, end) in enumerate(spans)])
            places = torch.cat([torch.arange(first, end) for first, end in spans])
            losses = _losses(model, ids, rows, places).split([end - first for first, end in spans])
            return [_Scored(float(loss.mean()), after) for loss, (_, after) in zip(losses, batch, strict=True)]

        results = run_by_length([rows[i] for i in known], lambda row: len(row[0]) + len(row[1]), run, self.batch_size)
        scores = {distinct[i]: result for i, result in zip(known, results, strict=True)}
        return [scores.get(pair) for pair in zip(contexts, texts, strict=True)]

    def _encode(self, tokenizer: Any, limit: int, context: str, text: str) -> tuple[list[int], list[int]]:
        """The ids before the text, start token first, and those of the text: together at most `limit`."""
        characters = CHARACTERS_PER_TOKEN * limit
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        before = [] if start is None else [start]
        if is_empty(text[:characters]):
            return before, []
        ids = tokenizer(tokenizable(text, characters), add_special_tokens=False)["input_ids"][: limit - len(before)]
        room = limit - len(before) - len(ids)
        if context and room:
            end = tokenizable(context[-characters:], characters)
            before += tokenizer(end, add_special_tokens=False)["input_ids"][-room:]
        return before, ids


def _losses(model: Any, ids: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """-log p of the tokens ids[rows, places], each after those before it: (N,) float32.

    No mask: the padding is behind a text, where a causal model does not look.
    """
    targets = ids[rows, places]
    if not _is_trunk_and_head(model):
        return _nll(model(input_ids=ids).logits[rows, places - 1], targets)
    hidden, head = model.base_model(input_ids=ids).last_hidden_state[rows, places - 1], model.get_output_embeddings()
    parts = zip(hidden.split(_AT_ONCE), targets.split(_AT_ONCE), strict=True)
    return torch.cat([_nll(head(part), wanted) for part, wanted in parts])


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    size = _IN_CACHE if logits.device.type == "cpu" else len(targets)
    parts = zip(logits.split(size), targets.split(size), strict=True)
    return torch.cat([torch.nn.functional.cross_entropy(part.float(), ids, reduction="none") for part, ids in parts])


@functools.cache
def _is_trunk_and_head(model: Any) -> bool:
    """Whether the logits are the head of the last hidden state, nothing between or after (Gemma 2 caps them)."""
    trunk, head, ids = model.base_model, model.get_output_embeddings(), torch.tensor([[0, 1, 2]], device=model.device)
    if head is None or trunk is model:
        return False
    logits = model(input_ids=ids).logits
    return torch.equal(head(trunk(input_ids=ids).last_hidden_state), logits)


@register_reward("perplexity", leans_on="transformers", needs_model=True, cost="1 s")
class Perplexity(_LanguageModel):
    """1 / perplexity of the completion, times its distinct token 3-grams / token 3-grams.

    1 / perplexity = exp(mean log p(token)), the geometric mean of the tokens' probabilities: in [0, 1], higher is
    better, where perplexity itself is unbounded and lower is better. Natural text has about 0.02 to 0.1. Repeated text
    is likely text ("the the the"), hence the factor. An empty completion scores 0.

    Args:
        model: a causal language model: a folder or a Hub name.
        given_prompt: score the completion as what follows the prompt, both as they stand, without a chat template. Of a
            chat prompt the last message counts.
        max_length: tokens of prompt and completion that count.
    """

    def __init__(self, model: str = "gpt2", given_prompt: bool = False, max_length: int = 512, batch_size: int = 8):
        super().__init__(model, max_length, batch_size)
        self.given_prompt = given_prompt

    def __call__(self, completions: list[str], prompts: list[str] | None = None) -> list[float | None]:
        contexts = prompts if self.given_prompt and prompts else [""] * len(completions)
        scored = self._score(contexts, completions)
        return [0.0 if text is None else math.exp(-text.nll) * text.distinct_3grams for text in scored]


@register_reward("fluency", leans_on="transformers", needs_model=True, cost="1 s")
class Fluency(_LanguageModel):
    """sigmoid(4 * (middle - nll) / (bad - good)) times the completion's distinct token 3-grams / token 3-grams.

    nll is the mean -log p(token) in nats (the log of the perplexity), middle = (good + bad) / 2: in [0, 1], 0.88 at
    `good`, 0.5 in the middle, 0.12 at `bad`. Unlike `perplexity` it spreads natural texts over the range and hardly
    pays for text that is likelier than natural text. An empty completion scores 0. Own formula.

    Args:
        model: a causal language model: a folder or a Hub name.
        good, bad: nll of fluent and of broken text; the defaults, perplexity 33 and 1100, are for short English texts
            under GPT-2. A larger model needs lower ones.
        max_length: tokens of the completion that count.
    """

    def __init__(
        self, model: str = "gpt2", good: float = 3.5, bad: float = 7.0, max_length: int = 512, batch_size: int = 8
    ):
        super().__init__(model, max_length, batch_size)
        if not math.isfinite(bad) or not 0 <= good < bad:
            raise ValueError(f"good = {good}, bad = {bad}: must be finite with 0 <= good < bad")
        self.good, self.bad = good, bad

    def __call__(self, completions: list[str]) -> list[float | None]:
        scored = self._score([""] * len(completions), completions)
        return [0.0 if text is None else self._squash(text.nll) * text.distinct_3grams for text in scored]

    def _squash(self, nll: float) -> float:
        z = 4 * ((self.good + self.bad) / 2 - nll) / (self.bad - self.good)
        return 0.5 * (1 + math.tanh(z / 2))  # the sigmoid, which does not overflow like this


@register_reward("gptscore", leans_on="transformers", needs_model=True, cost="1 s")
class GptScore(_LanguageModel):
    """exp(mean log p(token)) of the completion after a template that says what is wanted (GPTScore, arXiv 2302.04166).

    In [0, 1]; the paper's score with equal weights is the logarithm. An empty completion scores 0. Not guarded against
    repetition: combine with `repetition`. None where the template has {target} and the row has no reference; of several
    references the best counts.

    Args:
        model: a causal language model: a folder or a Hub name.
        template: the text before the completion, with the placeholders {prompt} or {target} or both; e.g. the paper's
            "Rewrite the following text with consistent details. {target} In other words, ".
        max_length: tokens of template and completion that count; the template loses its beginning.
    """

    def __init__(self, model: str = "gpt2", template: str = "{prompt}\n", max_length: int = 512, batch_size: int = 8):
        super().__init__(model, max_length, batch_size)
        self.placeholders = set(_PLACEHOLDER.findall(template))
        if not self.placeholders:
            raise ValueError(f"template = {template!r}: must contain {{prompt}} or {{target}}")
        self.template = template

    def __call__(
        self, completions: list[str], target: list[Any] | None = None, prompts: list[str] | None = None
    ) -> list[float | None]:
        if "target" in self.placeholders and target is None:
            raise RewardError('gptscore: the template has {target}: name the column of the references with "target"')
        rows, contexts = [], []
        for row, (prompt, references) in enumerate(
            zip(prompts or [""] * len(completions), target or [""] * len(completions), strict=True)
        ):
            several = references if isinstance(references, list | tuple) else [references]
            if "target" not in self.placeholders:
                several = [""]
            for reference in several:
                if reference is not None:
                    rows.append(row)
                    contexts.append(self._fill(prompt, str(reference)))
        best: list[float | None] = [None] * len(completions)
        for row, text in zip(rows, self._score(contexts, [completions[row] for row in rows]), strict=True):
            best[row] = max(best[row] or 0.0, math.exp(-text.nll) if text else 0.0)
        return best

    def _fill(self, prompt: str, target: str) -> str:
        # not str.format: braces in a prompt are no placeholders
        values = {"prompt": prompt, "target": target}
        return _PLACEHOLDER.sub(lambda match: values[match[1]], self.template)
