import pytest
import torch

from trl_ext.losses import generalized_advantage_estimate, length_adaptive_lambda


def slow_gae(rewards, values, mask, gamma, lam):
    """Sums of discounted deltas over the tokens that count, one completion at a time (Eq. 16 written out)."""
    advantages = torch.zeros_like(values)
    for i in range(len(values)):
        kept = [t for t in range(values.size(1)) if mask[i, t]]
        deltas = []
        for j, t in enumerate(kept):
            following = values[i, kept[j + 1]] if j + 1 < len(kept) else 0.0
            deltas.append(rewards[i, t] + gamma * following - values[i, t])
        for j, t in enumerate(kept):
            advantages[i, t] = sum((gamma * lam[i]) ** k * delta for k, delta in enumerate(deltas[j:]))
    return advantages


@pytest.fixture
def episode(batch):
    generator = torch.Generator().manual_seed(1)
    shape = batch.completion_mask.shape
    rewards = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return rewards, values, batch.completion_mask


def test_hand_computed_case():
    rewards, values = torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[0.5, 0.25]]).double()
    advantages, returns = generalized_advantage_estimate(rewards, values, torch.ones(1, 2), gamma=0.9, lam=0.5)
    last = 1.0 - 0.25
    first = 0.0 + 0.9 * 0.25 - 0.5 + 0.9 * 0.5 * last
    torch.testing.assert_close(advantages, torch.tensor([[first, last]], dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(returns, advantages + values, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.99, 1.0)])
def test_equals_the_slow_loop(episode, gamma, lam):
    rewards, values, mask = episode
    advantages, returns = generalized_advantage_estimate(rewards, values, mask, gamma=gamma, lam=lam)
    expected = slow_gae(rewards, values, mask, gamma, [lam] * len(values))
    torch.testing.assert_close(advantages, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(returns, torch.where(mask.bool(), expected + values, 0.0), rtol=1e-12, atol=1e-14)


def test_lambda_may_differ_between_completions(episode):
    rewards, values, mask = episode
    lam = torch.linspace(0, 1, len(values), dtype=torch.float64)
    advantages, _ = generalized_advantage_estimate(rewards, values, mask, lam=lam.unsqueeze(1))
    torch.testing.assert_close(advantages, slow_gae(rewards, values, mask, 1.0, lam), rtol=1e-12, atol=1e-14)


def test_environment_tokens_are_skipped_not_counted(episode):
    """A turn of the environment in the middle changes nothing: the same as if its tokens were not there."""
    rewards, values, mask = (x[3:4] for x in episode)
    kept = mask.bool()[0]
    whole, _ = generalized_advantage_estimate(rewards, values, mask, gamma=0.9)
    packed, _ = generalized_advantage_estimate(rewards[:, kept], values[:, kept], mask[:, kept], gamma=0.9)
    torch.testing.assert_close(whole[:, kept], packed, rtol=1e-12, atol=0)


def test_garbage_in_the_padding_is_not_read(episode):
    rewards, values, mask = episode
    expected, _ = generalized_advantage_estimate(rewards, values, mask)
    rewards, values = (x.masked_fill(mask == 0, float("nan")) for x in (rewards, values))
    advantages, returns = generalized_advantage_estimate(rewards, values, mask)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=0)
    assert returns.isfinite().all()


def test_lambda_zero_is_the_td_residual(episode):
    rewards, values, _ = episode
    advantages, _ = generalized_advantage_estimate(rewards, values, torch.ones_like(values), gamma=0.9, lam=0.0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    torch.testing.assert_close(advantages, rewards + 0.9 * following - values, rtol=1e-12, atol=1e-14)


def test_lambda_one_is_the_return_minus_the_value(episode):
    rewards, values, _ = episode
    advantages, _ = generalized_advantage_estimate(rewards, values, torch.ones_like(values), lam=1.0)
    torch.testing.assert_close(advantages, rewards.flip(1).cumsum(1).flip(1) - values, rtol=1e-12, atol=1e-13)


def test_the_order_of_the_batch_changes_nothing(episode):
    expected = generalized_advantage_estimate(*episode, gamma=0.9)
    order = torch.randperm(len(episode[0]), generator=torch.Generator().manual_seed(0))
    shuffled = generalized_advantage_estimate(*(x[order] for x in episode), gamma=0.9)
    for ours, theirs in zip(shuffled, expected, strict=True):
        torch.testing.assert_close(ours, theirs[order], rtol=0, atol=0)


def test_lambda_one_returns_are_discounted_rewards_to_go(episode):
    rewards, values, _ = episode
    _, returns = generalized_advantage_estimate(rewards, values, torch.ones_like(values), lam=1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1), rtol=1e-12, atol=1e-13)


def test_no_gradient_flows(episode):
    rewards, values, mask = episode
    advantages, returns = generalized_advantage_estimate(rewards, values.requires_grad_(), mask)
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_length_adaptive_lambda_by_hand():
    mask = torch.zeros(4, 400)
    for row, length in enumerate((400, 40, 10, 0)):
        mask[row, :length] = 1
    mask[0, 5] = 0  # a tool's token
    assert length_adaptive_lambda(mask, 0.05).tolist() == pytest.approx([1 - 1 / (0.05 * 399), 0.5, 0.0, 0.0])


def test_packing_completions_into_one_row_changes_nothing(episode):
    rewards, values, mask = episode
    expected = generalized_advantage_estimate(rewards, values, mask, gamma=0.9, lam=0.7)
    ids = torch.arange(len(mask)).unsqueeze(1).expand_as(mask)
    packed = [x.reshape(1, -1) for x in (rewards, values, mask, ids)]
    results = generalized_advantage_estimate(*packed[:3], gamma=0.9, lam=0.7, episode_ids=packed[3])
    for ours, unpacked in zip(results, expected, strict=True):
        torch.testing.assert_close(ours.reshape(mask.shape), unpacked, rtol=1e-12, atol=1e-14)
    wrong, _ = generalized_advantage_estimate(*packed[:3], gamma=0.9, lam=0.7)
    assert not torch.allclose(wrong.reshape(mask.shape), expected[0])
