import math

import pytest
import torch

from trl_ext.losses import cispo_loss, cispo_weight, ppo_clip_loss

BOUNDS = {"importance_weight_min": 0.7, "importance_weight_max": 1.3, "trust_region_low": 0.6, "trust_region_high": 1.6}
VARIANTS = [
    {},
    {"importance_weight_min": 0.7, "importance_weight_max": 1.3},
    {"trust_region_low": 0.6, "trust_region_high": 1.6},
    BOUNDS,
]


def slow_cispo(batch, min_=0.0, max_=5.0, low=None, high=None, normalizer=None):
    """Eq. 4-7 written out token by token."""
    total, count = 0.0, 0
    for i in range(batch.per_token_logps.size(0)):
        for t in range(batch.per_token_logps.size(1)):
            if not batch.completion_mask[i, t]:
                continue
            count += 1
            logp, advantage = batch.per_token_logps[i, t], batch.advantages[i, 0].item()
            ratio = math.exp(logp.item() - batch.old_per_token_logps[i, t].item())
            if advantage > 0 and high is not None and ratio > high:
                continue
            if advantage < 0 and low is not None and ratio < low:
                continue
            total = total - min(max(ratio, min_), max_) * advantage * logp
    return total / (normalizer or count)


def loss_and_gradient(loss, batch):
    return loss.item(), torch.autograd.grad(loss, batch.per_token_logps)[0]


def test_hand_computed_case():
    logps = torch.tensor([[math.log(0.6), math.log(0.5)]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[math.log(0.1), math.log(0.5)]], dtype=torch.float64)  # r = 6, clipped to 5; r = 1
    mask = torch.ones(1, 2)
    loss = cispo_loss(logps, old, torch.tensor([[2.0]], dtype=torch.float64), mask)
    assert loss.item() == pytest.approx(-(5 * 2 * math.log(0.6) + 1 * 2 * math.log(0.5)) / 2, rel=1e-12)
    loss.backward()
    torch.testing.assert_close(logps.grad, torch.tensor([[-5.0, -1.0]], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("bounds", VARIANTS)
@pytest.mark.parametrize("normalizer", [None, 17.0])
def test_equals_the_slow_loop(batch, bounds, normalizer):
    fast = cispo_loss(**vars_of(batch), **bounds, normalizer=normalizer)
    slow = slow_cispo(
        batch,
        bounds.get("importance_weight_min", 0.0),
        bounds.get("importance_weight_max", 5.0),
        bounds.get("trust_region_low"),
        bounds.get("trust_region_high"),
        normalizer,
    )
    (value, gradient), (slow_value, slow_gradient) = loss_and_gradient(fast, batch), loss_and_gradient(slow, batch)
    assert value == pytest.approx(slow_value, rel=1e-12)
    torch.testing.assert_close(gradient, slow_gradient, rtol=1e-12, atol=1e-15)


def test_padding_and_order_do_not_matter(batch):
    value, gradient = loss_and_gradient(cispo_loss(**vars_of(batch), **BOUNDS), batch)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    pad = torch.nn.functional.pad
    shuffled = {name: x[order] for name, x in vars_of(batch).items()}
    shuffled = {name: x if name == "advantages" else pad(x, (0, 4)) for name, x in shuffled.items()}
    other_value, other_gradient = loss_and_gradient(cispo_loss(**shuffled, **BOUNDS), batch)
    assert other_value == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-12, atol=0)


def test_cutting_the_batch_with_one_normalizer_changes_nothing(batch):
    normalizer = batch.completion_mask.sum()
    whole = cispo_loss(**vars_of(batch), **BOUNDS)
    parts = [
        cispo_loss(**{name: x[rows] for name, x in vars_of(batch).items()}, **BOUNDS, normalizer=normalizer)
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)


def test_clipped_token_still_has_gradient_and_ppo_gives_it_none():
    """What the source document calls CISPO, -min(r A, clip(r) A), is PPO's clip: its clipped tokens learn nothing."""
    logps = torch.tensor([[math.log(0.9)]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[math.log(0.1)]], dtype=torch.float64)  # r = 9
    advantages, mask = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1)
    (cispo,) = torch.autograd.grad(cispo_loss(logps, old, advantages, mask, importance_weight_max=1.2), logps)
    (ppo,) = torch.autograd.grad(ppo_clip_loss(logps, old, advantages, mask), logps)
    assert cispo.item() == pytest.approx(-1.2, rel=1e-12)
    assert ppo.item() == 0.0


def test_token_outside_the_trust_region_has_no_gradient():
    ratio = torch.tensor([[2.0, 2.0], [0.5, 0.5]])
    advantages = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    weight = cispo_weight(ratio, advantages, trust_region_low=0.8, trust_region_high=1.2)
    assert weight.tolist() == [[0.0, 2.0], [0.5, 0.0]]


def test_no_gradient_flows_through_the_old_policy_or_the_ratio(batch):
    old = batch.old_per_token_logps.clone().requires_grad_()
    loss = cispo_loss(**{**vars_of(batch), "old_per_token_logps": old})
    assert torch.autograd.grad(loss, old, allow_unused=True)[0] is None
    assert not cispo_weight(torch.ones(1, requires_grad=True), torch.ones(1)).requires_grad


def test_empty_mask_gives_zero_with_a_backward(batch):
    loss = cispo_loss(**{**vars_of(batch), "completion_mask": torch.zeros_like(batch.completion_mask)})
    value, gradient = loss_and_gradient(loss, batch)
    assert value == 0.0
    assert gradient.abs().max().item() == 0.0


def vars_of(batch):
    names = ("per_token_logps", "old_per_token_logps", "advantages", "completion_mask")
    return {name: getattr(batch, name) for name in names}
