import math

import pytest
import torch
import torch.multiprocessing as mp

from trl_ext.rewards import make_reward
from trl_ext.rewards.postprocess import POSTPROCESSORS, EMANormalize

CASES = [
    ({"type": "clip"}, [-1.0, 0.5, 2.0], [0.0, 0.5, 1.0]),
    ({"type": "clip", "min": -2, "max": 1}, [-3.0, 0.5, 2.0], [-2.0, 0.5, 1.0]),
    ({"type": "scale", "mul": 2, "add": -1}, [0.0, 0.5, 1.0], [-1.0, 0.0, 1.0]),
    ({"type": "threshold", "at": 0.5}, [0.4, 0.5, 0.6], [0.0, 1.0, 1.0]),
    ({"type": "threshold", "at": 0, "above": 2, "below": -2}, [-0.1, 0.0, 1.0], [-2.0, 2.0, 2.0]),
    ({"type": "invert"}, [0.0, 0.25, 1.0], [1.0, 0.75, 0.0]),
    ({"type": "squash"}, [0.0, math.log(3), -1e9], [0.5, 0.75, 0.0]),
    ({"type": "squash", "center": 1, "width": 2}, [1.0, 1 + 2 * math.log(3), 1e308], [0.5, 0.75, 1.0]),
]


@pytest.mark.parametrize(("step", "scores", "expected"), CASES)
def test_hand_computed_cases_and_none_stays_none(step, scores, expected):
    assert POSTPROCESSORS.validate_python(step)([*scores, None]) == [pytest.approx(x) for x in expected] + [None]


def test_the_first_batch_sets_the_averages_and_later_ones_move_them():
    step = EMANormalize(decay=0.5, eps=1e-12)
    assert step([1.0, 3.0, None]) == [pytest.approx(-1.0), pytest.approx(1.0), None]
    step([8.0])  # keeps 0.5^1 of mean 2 and variance 1
    assert step.state_dict()["mean"] == pytest.approx(5.0)
    assert step.state_dict()["variance"] == pytest.approx(0.5 * 1 + 0.5 * (8 - 5) ** 2)


def test_a_batch_without_scores_moves_nothing():
    step = EMANormalize()
    assert step([None, None]) == [None, None]
    assert step.state_dict() is None


def _normalize_a_share(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    step = EMANormalize(decay=0.9)
    scores = [step(batch) for batch in ([[1.0, 2.0], [5.0, None]], [[6.0, 4.0], [None, None]])[rank]]
    torch.save((scores, step.state_dict()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_every_process_holds_the_averages_of_all(tmp_path):
    mp.spawn(_normalize_a_share, args=(str(tmp_path),), nprocs=2)
    (first, state), (second, other_state) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    alone = EMANormalize(decay=0.9)
    expected = [alone([1.0, 2.0, 6.0, 4.0]), alone([5.0, None, None, None])]
    assert state == other_state == pytest.approx(alone.state_dict())
    for a, b, together in zip(first, second, expected, strict=True):
        assert a + b == [x if x is None else pytest.approx(x) for x in together]


def test_a_chain_is_applied_in_order():
    steps = [{"type": "invert"}, {"type": "scale", "mul": 10}, {"type": "clip", "max": 5}]
    reward = make_reward({"type": "jaccard", "postprocess": steps})
    assert reward.score("a b c d", "a") == 5.0  # (1 - 0.25) * 10, clipped
    assert reward.score("a b", "a b") == 0.0
