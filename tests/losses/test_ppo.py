import math

import pytest
import torch

from trl_ext.losses import policy_clip_fraction, ppo_clip_loss, token_rewards, value_clip_fraction, value_loss


def slow_ppo(batch, low, high):
    total, count = 0.0, 0
    for i, t in batch.completion_mask.nonzero().tolist():
        ratio = torch.exp(batch.per_token_logps[i, t] - batch.old_per_token_logps[i, t])
        advantage = batch.advantages[i, 0]
        clipped = min(max(ratio.item(), 1 - low), 1 + high) * advantage
        unclipped = ratio * advantage
        total = total - (unclipped if unclipped.item() <= clipped.item() else clipped)
        count += 1
    return total / count


def test_hand_computed_case():
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5]], dtype=torch.float64)
    logps = torch.log(ratio).requires_grad_()
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    loss = ppo_clip_loss(logps, torch.zeros_like(ratio), advantages, torch.ones(1, 4), normalizer=1.0)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8), rel=1e-12)
    loss.backward()  # dL/dlogp = -r A where the clip does not hold the token
    torch.testing.assert_close(logps.grad, torch.tensor([[0.0, -0.5, 1.5, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.0, 0.5)])
def test_equals_the_slow_loop(batch, low, high):
    args = (batch.per_token_logps, batch.old_per_token_logps, batch.advantages, batch.completion_mask)
    fast, slow = ppo_clip_loss(*args, cliprange_low=low, cliprange_high=high), slow_ppo(batch, low, high)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(fast, batch.per_token_logps)
    (slow_gradient,) = torch.autograd.grad(slow, batch.per_token_logps)
    torch.testing.assert_close(gradient, slow_gradient, rtol=1e-12, atol=1e-15)


def test_padding_and_micro_batches_do_not_matter(batch):
    args = (batch.per_token_logps, batch.old_per_token_logps, batch.advantages, batch.completion_mask)
    whole = ppo_clip_loss(*args)
    parts = [
        ppo_clip_loss(*(x[row : row + 1] for x in args), normalizer=batch.completion_mask.sum()) for row in range(6)
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)


def test_value_loss_hand_computed_case():
    values = torch.tensor([[1.0, 0.3, 9.0]], dtype=torch.float64, requires_grad=True)
    old, returns = torch.tensor([[0.0, 0.2, 9.0]]).double(), torch.tensor([[2.0, 0.0, 9.0]]).double()
    mask = torch.tensor([[1, 1, 0]])
    loss = value_loss(values, old, returns, mask, cliprange_value=0.2)
    # clipped value 0.2: (0.2 - 2)^2 = 3.24 > (1 - 2)^2; inside the range: 0.3^2
    assert loss.item() == pytest.approx(0.5 * (3.24 + 0.09) / 2, rel=1e-12)
    loss.backward()  # the clipped token has no gradient, the other one (V - R) / N
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, 0.15, 0.0]], dtype=torch.float64))


def test_padding_reaches_neither_the_value_loss_nor_its_gradient(batch):
    values, mask = batch.per_token_logps, batch.completion_mask
    padding = batch.old_per_token_logps  # NaN where the mask is 0
    (gradient,) = torch.autograd.grad(value_loss(values, padding, padding, mask), values)
    assert gradient.isfinite().all()
    assert gradient[mask == 0].abs().max().item() == 0.0


def test_value_loss_without_clip_is_half_the_mean_squared_error(batch):
    values, returns = batch.ref_per_token_logps, batch.per_token_logps.detach()
    mask = batch.completion_mask.bool()
    loss = value_loss(values, torch.full_like(values, math.nan), returns, mask, cliprange_value=None)
    assert loss.item() == pytest.approx(0.5 * ((values - returns)[mask] ** 2).mean().item(), rel=1e-12)


def test_value_loss_of_micro_batches_adds_up(batch):
    values, returns, mask = batch.ref_per_token_logps, batch.per_token_logps.detach(), batch.completion_mask
    whole = value_loss(values, values * 0.9, returns, mask)
    parts = [
        value_loss(
            values[i : i + 2], values[i : i + 2] * 0.9, returns[i : i + 2], mask[i : i + 2], normalizer=mask.sum()
        )
        for i in (0, 2, 4)
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)


def test_the_score_stands_on_the_last_token_that_counts_and_the_kl_on_each():
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    kl = torch.tensor([[1.0, 2.0, torch.nan, 4.0, torch.inf]]).expand(3, 5)
    rewards = token_rewards(torch.tensor([10.0, 20.0, 30.0]), mask, kl, 0.5)
    assert rewards.tolist() == [[-0.5, -1.0, 0.0, 8.0, 0.0], [19.5, 0.0, 0.0, 0.0, 0.0], [0.0] * 5]
    assert token_rewards(torch.tensor([10.0]), mask[:1], None, 0.5).tolist() == [[0.0, 0.0, 0.0, 10.0, 0.0]]


def test_parts_of_a_score_with_a_token_of_their_own_stay_there_and_the_last_token_gets_the_rest():
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    parts = torch.tensor([[0.0, 2.0, 100.0, -1.0, 100.0], [0.0, 0.0, 0.0, 0.0, 0.0]])  # 100: no token of the model's
    rewards = token_rewards(torch.tensor([10.0, torch.nan]), mask, torch.ones(2, 5), 0.5, parts)
    assert rewards.tolist() == [[-0.5, 1.5, 0.0, 7.5, 0.0], [0.0] * 5]


def test_a_score_that_is_missing_reaches_no_token_of_a_row_that_does_not_count():
    rewards = token_rewards(torch.tensor([torch.nan, 1.0]), torch.tensor([[0, 0], [1, 0]]), None, 0.0)
    assert rewards.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_clip_fractions_count_the_tokens_that_have_no_gradient(batch):
    arguments = (batch.per_token_logps, batch.old_per_token_logps, batch.advantages, batch.completion_mask)
    (gradient,) = torch.autograd.grad(ppo_clip_loss(*arguments), batch.per_token_logps)
    without = ((gradient == 0) & batch.completion_mask.bool()).sum() / batch.completion_mask.sum()
    assert 0 < without < 1
    assert policy_clip_fraction(*arguments).item() == pytest.approx(without.item())


def test_value_clip_fraction_by_hand():
    values, old = torch.tensor([[1.0, 1.0, 0.1, 5.0]]), torch.zeros(1, 4)
    returns, mask = torch.tensor([[1.0, -1.0, 1.0, 0.0]]), torch.tensor([[1, 1, 1, 0]])
    # clipped to 0.2: error 0.64 against 0; 1.44 against 4; inside the clip both are the same
    assert value_clip_fraction(values, old, returns, mask).item() == pytest.approx(1 / 3)
    assert value_clip_fraction(values, old, returns, mask, cliprange_value=None).item() == 0


def test_values_within_the_range_are_not_clipped_by_rounding():
    generator = torch.Generator().manual_seed(0)
    old, move, returns = (torch.randn(16, 32, generator=generator) for _ in range(3))
    values = old + 0.05 * move.clamp(-3, 3)
    assert value_clip_fraction(values, old, returns, torch.ones(16, 32)).item() == 0
