"""Estimators of KL(pi || pi_ref) from the log-probabilities of tokens that pi sampled."""

from typing import Literal

import torch
from torch import Tensor


def kl_estimate(per_token_logps: Tensor, ref_per_token_logps: Tensor, kind: Literal["k1", "k2", "k3"] = "k3") -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) (Schulman 2020, "Approximating KL divergence").

    With d = log pi - log pi_ref:

        k1 = d                   unbiased, high variance, can be negative
        k2 = d^2 / 2             biased, low variance
        k3 = exp(-d) - 1 + d     unbiased, low variance, never negative

    Shapes: both arguments and the result are (B, T). Gradients flow through both arguments. The gradient of k2 is that
    of the KL itself; those of k1 and k3 as losses are not.

    Raises:
        ValueError: `kind` is none of the three.
    """
    difference = per_token_logps - ref_per_token_logps
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference**2
    if kind == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"kind = {kind!r}: must be 'k1', 'k2' or 'k3'")
