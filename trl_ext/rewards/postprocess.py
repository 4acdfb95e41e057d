"""What can be done to the scores of a component, in order. A None stays a None."""

import math
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter, model_validator

Scores = list[float | None]


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    def one(self, score: float) -> float:
        raise AssertionError(f"{type(self).__name__} works on batches")

    def __call__(self, scores: Scores) -> Scores:
        return [None if score is None else self.one(score) for score in scores]


class Clip(_Step):
    """Between `min` and `max`."""

    type: Literal["clip"] = "clip"
    min: float = 0.0
    max: float = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> "Clip":
        if self.max <= self.min:
            raise ValueError(f"max = {self.max}: must be greater than min ({self.min})")
        return self

    def one(self, score: float) -> float:
        return min(max(score, self.min), self.max)


class Scale(_Step):
    """`mul` * score + `add`."""

    type: Literal["scale"] = "scale"
    mul: float = 1.0
    add: float = 0.0

    def one(self, score: float) -> float:
        return self.mul * score + self.add


class Threshold(_Step):
    """`above` where the score is at least `at`, else `below`."""

    type: Literal["threshold"] = "threshold"
    at: float = 0.5
    above: float = 1.0
    below: float = 0.0

    def one(self, score: float) -> float:
        return self.above if score >= self.at else self.below


class Invert(_Step):
    """1 - score: for a score in [0, 1] of which less is better."""

    type: Literal["invert"] = "invert"

    def one(self, score: float) -> float:
        return 1.0 - score


class Squash(_Step):
    """The logistic function of (score - `center`) / `width`: any score into [0, 1]."""

    type: Literal["squash"] = "squash"
    center: float = 0.0
    width: float = Field(1.0, gt=0.0)

    def one(self, score: float) -> float:
        return 0.5 * (1.0 + math.tanh(0.5 * (score - self.center) / self.width))


class EMANormalize(_Step):
    """(score - mean) / sqrt(variance + eps), mean and variance being exponential moving averages over the run.

    A batch of n scores moves them by 1 - decay^n, whatever the number of processes that it is spread over: all of them
    must call at the same time, and all hold the same averages. The first batch sets them. Their state is saved and
    restored by `RewardStateCallback`. (The source document moves them score by score, so that a reward depends on its
    place in the batch.)
    """

    type: Literal["ema_normalize"] = "ema_normalize"
    decay: float = Field(0.99, ge=0.0, lt=1.0)
    eps: float = Field(1e-8, gt=0.0)
    _state: dict[str, float] | None = PrivateAttr(default=None)

    def __call__(self, scores: Scores) -> Scores:
        known = torch.tensor([score for score in scores if score is not None], dtype=torch.float64)
        count, total = _sum_over_processes(float(len(known)), float(known.sum()))
        if count == 0:
            return scores
        batch_mean = total / count
        keep = 0.0 if self._state is None else self.decay**count
        previous = self._state or {"mean": 0.0, "variance": 0.0}
        mean = keep * previous["mean"] + (1 - keep) * batch_mean
        (squares,) = _sum_over_processes(float(((known - mean) ** 2).sum()))
        variance = keep * previous["variance"] + (1 - keep) * squares / count
        self._state = {"mean": mean, "variance": variance}
        scale = 1.0 / math.sqrt(variance + self.eps)
        return [None if score is None else (score - mean) * scale for score in scores]

    def state_dict(self) -> dict[str, float] | None:
        return self._state

    def load_state_dict(self, state: dict[str, float] | None) -> None:
        self._state = state


Postprocessor = Annotated[Clip | Scale | Threshold | Invert | Squash | EMANormalize, Field(discriminator="type")]
POSTPROCESSORS: TypeAdapter[Any] = TypeAdapter(Postprocessor)


def _sum_over_processes(*values: float) -> list[float]:
    if not (dist.is_available() and dist.is_initialized()):
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()
