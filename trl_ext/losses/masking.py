"""Reductions over the tokens that count. Every loss takes its mask from the caller; none re-derives it.

Shapes: B completions, T completion tokens. `mask` is 1 (or True) where a token counts.
What stands where the mask is 0 reaches neither a value nor a gradient, so padding may hold inf or NaN.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `x` over the ones of `mask` (along `dim`, or over everything)."""
    kept = torch.where(mask.bool(), x, 0.0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `x` over the ones of `mask`; 0 where the mask has none."""
    count = mask.bool().sum() if dim is None else mask.bool().sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def masked_var(x: Tensor, mask: Tensor, unbiased: bool = True, *, across_processes: bool = False) -> Tensor:
    """Variance of `x` over the ones of `mask` (with `across_processes`, those of all processes together), a scalar.

    `unbiased` divides by n - 1 (Bessel). With one element or none the variance is 0, not NaN.
    """
    _, var, count = _moments(x, mask, across_processes)
    return var * count / (count - 1).clamp(min=1) if unbiased else var


def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, across_processes: bool = False) -> Tensor:
    """`x` scaled to variance 1 over the ones of `mask`, and to mean 0 where `shift_mean`; 0 where the mask is 0.

    With `across_processes` the mean and the variance are those of all processes of the default `torch.distributed`
    group together, so that every process applies the same shift and scale. All of them must call it, those whose mask
    is empty too. The moments are constants: no gradient flows through them.

    Reference: "The N Implementation Details of RLHF with PPO", detail 3 (advantages, with shift) and its reward
    whitening (without). The variance is the unbiased one, as in TRL 1.12's `masked_whiten`.
    """
    mean, var, count = _moments(x.detach(), mask, across_processes)
    var = var * count / (count - 1).clamp(min=1)
    whitened = (x - mean) * torch.rsqrt(var + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask.bool(), whitened, 0.0)


def _moments(x: Tensor, mask: Tensor, across_processes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count over the mask, in two passes (a sum of squares would cancel)."""
    if x.dtype in (torch.float16, torch.bfloat16):  # a count above 256 is not exact in bfloat16
        x = x.float()
    distributed = across_processes and dist.is_available() and dist.is_initialized()
    total = torch.stack([masked_sum(x, mask), mask.bool().sum().to(x.dtype)])
    if distributed:
        dist.all_reduce(total)
    count = total[1]
    mean = total[0] / count.clamp(min=1)
    squares = masked_sum((x - mean) ** 2, mask)
    if distributed:
        dist.all_reduce(squares)
    return mean, squares / count.clamp(min=1), count


def log_ratio(per_token_logps: Tensor, old_per_token_logps: Tensor, mask: Tensor) -> Tensor:
    """log(pi / pi_old) where the mask is 1, and 0 elsewhere, whatever the padding holds. Shape (B, T)."""
    return torch.where(mask.bool(), per_token_logps - old_per_token_logps.detach(), 0.0)


def normalized_sum(per_token: Tensor, mask: Tensor, normalizer: Tensor | float | None) -> Tensor:
    """The sum over the mask divided by `normalizer`, which is the number of ones in the mask if None.

    A mask without ones gives 0 that still carries a gradient path, so that every process can run its backward.
    """
    if normalizer is None:
        normalizer = mask.bool().sum().clamp(min=1)
    return masked_sum(per_token, mask) / normalizer
