import pytest
import torch

from trl_ext.losses import group_relative_advantages, grpo_loss, ppo_clip_loss


def source_document_loss(batch, rewards, clip_eps=0.2, beta=0.04):
    """The GRPO document's formula, its order of operations, over the tokens that count."""
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).view(-1)
    policy, penalty, count = 0.0, 0.0, 0
    for i, t in batch.completion_mask.nonzero().tolist():
        new, old, ref = batch.per_token_logps[i, t], batch.old_per_token_logps[i, t], batch.ref_per_token_logps[i, t]
        ratio = torch.exp(new - old)
        surrogate = torch.minimum(ratio * advantages[i], torch.clamp(ratio, 1 - clip_eps, 1 + clip_eps) * advantages[i])
        policy, penalty, count = policy - surrogate, penalty + torch.exp(ref - new) - (ref - new) - 1, count + 1
    return policy / count + beta * penalty / count


def test_advantages_hand_computed_case():
    advantages = group_relative_advantages(torch.tensor([1.0, 0.0, 2.0, 2.0], dtype=torch.float64), 2)
    z = 0.5 / (0.5**0.5 + 1e-4)
    torch.testing.assert_close(advantages, torch.tensor([z, -z, 0.0, 0.0], dtype=torch.float64), rtol=1e-12, atol=0)
    centred = group_relative_advantages(torch.tensor([1.0, 0.0]), 2, scale_rewards="none")
    assert centred.tolist() == [0.5, -0.5]


@pytest.mark.parametrize(("count", "group"), [(5, 2), (4, 1)])
def test_incomplete_groups_are_refused(count, group):
    with pytest.raises(ValueError, match=f"{count} rewards in groups of {group}"):
        group_relative_advantages(torch.zeros(count), group)


def test_equals_the_source_documents_formula(batch):
    rewards = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 1.0]], dtype=torch.float64)
    advantages = group_relative_advantages(rewards.view(-1), 3).unsqueeze(1)
    fast = grpo_loss(
        batch.per_token_logps,
        batch.old_per_token_logps,
        advantages,
        batch.completion_mask,
        ref_per_token_logps=batch.ref_per_token_logps,
    )
    slow = source_document_loss(batch, rewards)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(fast, batch.per_token_logps)
    (slow_gradient,) = torch.autograd.grad(slow, batch.per_token_logps)
    torch.testing.assert_close(gradient, slow_gradient, rtol=1e-11, atol=1e-14)


def test_without_a_reference_it_is_the_clip_alone(batch):
    args = (batch.per_token_logps, batch.old_per_token_logps, batch.advantages, batch.completion_mask)
    assert grpo_loss(*args, epsilon_high=0.28).item() == ppo_clip_loss(*args, cliprange_high=0.28).item()


def test_micro_batches_add_up(batch):
    args = (batch.per_token_logps, batch.old_per_token_logps, batch.advantages, batch.completion_mask)
    ref, normalizer = batch.ref_per_token_logps, batch.completion_mask.sum()
    whole = grpo_loss(*args, ref_per_token_logps=ref)
    parts = [
        grpo_loss(*(x[i : i + 2] for x in args), ref_per_token_logps=ref[i : i + 2], normalizer=normalizer)
        for i in (0, 2, 4)
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)
