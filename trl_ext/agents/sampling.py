"""The next tokens of many conversations, through the trainer's own generation: transformers or vLLM."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class SampledLogps:
    """A forward hook that keeps the log-probability of each token that `generate` samples.

    They are those of the distribution that TRL trains, softmax(logits / temperature): of a batch of B rows a forward
    leaves B numbers and the logits of the newest token, never all logits.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature
        self._columns: list[Tensor] = []
        self._newest: Tensor | None = None

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self._newest is not None:  # this forward reads the token that the last one's logits gave
            self._columns.append(self._newest.gather(1, kwargs["input_ids"][:, -1:]).squeeze(1))
        self._newest = torch.log_softmax(output.logits[:, -1].float() / self.temperature, -1)

    def of(self, sampled_ids: list[list[int]]) -> list[list[float]]:
        """Those of the tokens that `generate` returned, row by row."""
        assert self._newest is not None
        steps = len(self._columns)
        last = torch.tensor([ids[steps] if len(ids) > steps else 0 for ids in sampled_ids], device=self._newest.device)
        columns = [*self._columns, self._newest.gather(1, last.unsqueeze(1)).squeeze(1)]
        table = torch.stack(columns, 1).tolist()
        return [row[: len(ids)] for row, ids in zip(table, sampled_ids, strict=True)]


def sample(trainer: Any, prefixes: list[list[int]], limit: int) -> tuple[list[list[int]], list[list[float]] | None]:
    """At most `limit` tokens after each prefix, cut after the first stop token, and their log-probabilities.

    It is the call that TRL's tool loop makes: transformers' `generate`, its continuous batching (which gives no
    log-probabilities: None) or vLLM (whose own they are), with the options of the trainer's config.
    """
    with _at_most(trainer, limit):
        if trainer.use_vllm or trainer.use_transformers_continuous_batching:
            ids, logps = trainer._generate_single_turn(prefixes, None, {}, num_generations=1)
            return ids, logps
        model = trainer.accelerator.unwrap_model(trainer.model)
        model = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's generate calls its own
        logps = SampledLogps(trainer.temperature)
        hook = model.register_forward_hook(logps, with_kwargs=True)
        try:
            ids, _ = trainer._generate_single_turn(prefixes, None, {}, num_generations=1)
        finally:
            hook.remove()
        return ids, logps.of(ids)


@contextmanager
def _at_most(trainer: Any, limit: int) -> Iterator[None]:
    owner, name = (
        (trainer.vllm_generation, "max_completion_length")
        if trainer.use_vllm
        else (trainer.generation_config, "max_new_tokens")
    )
    before = getattr(owner, name)
    setattr(owner, name, limit)
    try:
        yield
    finally:
        setattr(owner, name, before)
