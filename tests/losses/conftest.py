"""A batch of log-probabilities in float64, with ragged lengths and garbage in the padding."""

from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def batch() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    b, t = 6, 9

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    per_token_logps = normal(b, t).abs().neg()
    mask = (torch.arange(t) < torch.tensor([9, 1, 5, 7, 3, 8]).unsqueeze(1)).long()
    mask[3, 2:4] = 0  # an environment's turn in the middle
    old = per_token_logps + normal(b, t, scale=0.8)
    old[mask == 0] = float("nan")  # padding may hold anything
    return SimpleNamespace(
        per_token_logps=per_token_logps.requires_grad_(),
        old_per_token_logps=old,
        ref_per_token_logps=(per_token_logps.detach() + normal(b, t, scale=0.3)),
        advantages=normal(b, 1),
        completion_mask=mask,
    )
