import contextlib

import torch
import trl.kernels.chunked_logprob as kernel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import utils

from tests.trainers.training import config, trained
from trl_ext import CISPOConfig, CISPOTrainer
from trl_ext.trainers.head_tiles import SIZES, small_tiles


def head(hidden, weight, targets):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    outputs = ("log_probs", "entropy")
    logps, entropy, *_ = utils._ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 0.7, utils._CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, outputs
    )
    (logps.square().sum() + entropy.sum()).backward()
    return logps.detach(), entropy.detach(), hidden.grad, weight.grad


def test_small_tiles_give_the_log_probabilities_entropies_and_gradients_of_large_ones():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(300, 8), torch.randn(5000, 8), torch.randint(5000, (300,))
    whole = head(hidden, weight, targets)
    with small_tiles():
        assert utils._CHUNKED_LOGPROB_CHUNK_SIZE < 5000
        tiled = head(hidden, weight, targets)
    for ours, trls in zip(tiled, whole, strict=True):
        torch.testing.assert_close(ours, trls, rtol=1e-4, atol=1e-4)
    logits = hidden @ weight.T / 0.7
    torch.testing.assert_close(tiled[0], logits.log_softmax(1).gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-4)


def sizes():
    return kernel.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE


def test_trls_own_sizes_come_back_even_after_an_error():
    before = sizes()
    with contextlib.suppress(ZeroDivisionError), small_tiles():
        inside = sizes()
        raise ZeroDivisionError
    assert inside == tuple(SIZES.values())
    assert sizes() == before != inside


def test_on_the_cpu_forward_and_backward_use_small_tiles_and_trls_own_trainer_does_not(tiny, monkeypatch):
    seen = []
    for name in ("_forward_tile", "_backward_tile"):
        fold = getattr(kernel, name)

        def record(*args, fold=fold, name=name, **kwargs):
            seen.append((name, kernel.TOKEN_CHUNK_SIZE))
            return fold(*args, **kwargs)

        monkeypatch.setattr(kernel, name, record)
    small, own = SIZES["trl.kernels.chunked_logprob", "TOKEN_CHUNK_SIZE"], kernel.TOKEN_CHUNK_SIZE
    trained(CISPOTrainer, tiny, config(CISPOConfig, max_steps=1))
    assert set(seen) == {("_forward_tile", small), ("_backward_tile", small)}
    seen.clear()
    trained(GRPOTrainer, tiny, config(GRPOConfig, max_steps=1))
    assert set(seen) == {("_forward_tile", own), ("_backward_tile", own)}
