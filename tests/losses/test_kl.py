import math

import pytest
import torch

from trl_ext.losses import kl_estimate


def exact_expectation(kind):
    """E_pi[estimate] over a whole vocabulary, and the KL itself."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    logp, ref = logits.log_softmax(-1)
    divergence = (logp.exp() * (logp - ref)).sum()
    return (logp.exp() * kl_estimate(logp, ref, kind)).sum().item(), divergence.item()


def test_hand_computed_case():
    logp, ref = torch.tensor([[0.5]]).double().log(), torch.tensor([[0.25]]).double().log()
    d = math.log(2)
    for kind, expected in {"k1": d, "k2": d * d / 2, "k3": 0.5 - 1 + d}.items():
        assert kl_estimate(logp, ref, kind).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(kind):
    expectation, divergence = exact_expectation(kind)
    assert expectation == pytest.approx(divergence, rel=1e-12)


def test_k2_is_biased():
    expectation, divergence = exact_expectation("k2")
    assert abs(expectation - divergence) > 0.01 * divergence


def test_k2_and_k3_are_never_negative_and_k1_is(batch):
    args = (batch.per_token_logps.detach(), batch.ref_per_token_logps)
    assert kl_estimate(*args, "k2").min() >= 0
    assert kl_estimate(*args, "k3").min() >= 0
    assert kl_estimate(*args, "k1").min() < 0


def test_k3_equals_the_penalty_in_trl(batch):
    logp, ref = batch.per_token_logps.detach(), batch.ref_per_token_logps
    trl = torch.exp(ref - logp) - (ref - logp) - 1
    torch.testing.assert_close(kl_estimate(logp, ref, "k3"), trl, rtol=1e-12, atol=1e-15)


def test_gradient_of_k2_is_the_gradient_of_the_divergence():
    """Summed over the vocabulary under pi, d/dtheta E[k2] with the samples fixed is the gradient of KL(pi || ref)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=generator, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(-1)
    logp = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), logits, retain_graph=True)
    (k2,) = torch.autograd.grad((logp.exp().detach() * kl_estimate(logp, ref, "k2")).sum(), logits, retain_graph=True)
    (k3,) = torch.autograd.grad((logp.exp().detach() * kl_estimate(logp, ref, "k3")).sum(), logits)
    torch.testing.assert_close(k2, exact, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(k3, exact, rtol=1e-2)


def test_unknown_kind_names_the_choices():
    with pytest.raises(ValueError, match=r"kind = 'k4': must be 'k1', 'k2' or 'k3'"):
        kl_estimate(torch.zeros(1, 1), torch.zeros(1, 1), "k4")
