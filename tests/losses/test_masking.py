import pytest
import torch
import torch.multiprocessing as mp

from trl_ext.losses import masked_mean, masked_sum, masked_var, masked_whiten


@pytest.fixture
def x(batch):
    return batch.old_per_token_logps  # NaN where the mask is 0


def test_hand_computed_case():
    x = torch.tensor([[1.0, 3.0, 100.0], [5.0, 7.0, 100.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    assert masked_sum(x, mask).item() == 16.0
    assert masked_mean(x, mask).item() == 4.0
    assert masked_mean(x, mask, dim=1).tolist() == [2.0, 6.0]
    assert masked_var(x, mask).item() == pytest.approx(20 / 3)
    assert masked_var(x, mask, unbiased=False).item() == 5.0


def test_equals_torch_on_the_selected_values(x, batch):
    mask = batch.completion_mask
    kept = x[mask.bool()]
    assert masked_mean(x, mask).item() == pytest.approx(kept.mean().item(), rel=1e-12)
    assert masked_var(x, mask).item() == pytest.approx(kept.var().item(), rel=1e-12)
    assert masked_var(x, mask, unbiased=False).item() == pytest.approx(kept.var(unbiased=False).item(), rel=1e-12)


def test_a_large_mean_does_not_cancel_the_variance():
    x = torch.tensor([[1e8, 1e8 + 1, 1e8 + 2]], dtype=torch.float64)
    assert masked_var(x, torch.ones_like(x)).item() == pytest.approx(1.0, rel=1e-9)


def test_bfloat16_counts_are_exact():
    x = (torch.arange(1001) % 2).to(torch.bfloat16)
    exact = x.float().var().item()
    assert masked_var(x, torch.ones_like(x)).item() == pytest.approx(exact, rel=1e-5)


def test_whitened_values_have_mean_0_and_variance_1(x, batch):
    mask = batch.completion_mask
    white = masked_whiten(x, mask)
    assert masked_mean(white, mask).item() == pytest.approx(0.0, abs=1e-12)
    assert masked_var(white, mask).item() == pytest.approx(1.0, rel=1e-6)
    assert white[mask == 0].abs().max().item() == 0.0


def test_whitening_without_shift_keeps_the_mean(x, batch):
    mask = batch.completion_mask
    white = masked_whiten(x, mask, shift_mean=False)
    assert masked_mean(white, mask).item() == pytest.approx(masked_mean(x, mask).item(), rel=1e-12)


@pytest.mark.parametrize("ones", [0, 1])
def test_empty_and_single_masks_give_no_nan(x, ones):
    mask = torch.zeros_like(x)
    mask.view(-1)[:ones] = 1
    assert masked_var(x, mask).item() == 0.0
    assert masked_whiten(x, mask).isfinite().all()
    assert masked_mean(x, torch.zeros_like(mask)).item() == 0.0


def test_gradient_reaches_only_the_tokens_that_count(batch):
    masked_mean(batch.per_token_logps, batch.completion_mask).backward()
    expected = batch.completion_mask.double() / batch.completion_mask.sum()
    torch.testing.assert_close(batch.per_token_logps.grad, expected, rtol=1e-12, atol=0)


def _whiten_a_share(rank, folder, x, mask):
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    rows = slice(0, 4) if rank == 0 else slice(4, 6)
    torch.save(masked_whiten(x[rows], mask[rows], across_processes=True), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("empty_share", [False, True])
def test_whitening_across_processes_equals_whitening_all_at_once(x, batch, tmp_path, empty_share):
    mask = batch.completion_mask.clone()
    if empty_share:
        mask[4:] = 0
    mp.spawn(_whiten_a_share, args=(str(tmp_path), x, mask), nprocs=2)
    parts = torch.cat([torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)])
    torch.testing.assert_close(parts, masked_whiten(x, mask), rtol=1e-12, atol=1e-14)
