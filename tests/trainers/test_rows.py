import torch

from trl_ext.trainers.rows import lengths, loss_mask, merge, parts, take


def rollout():
    """Three rows: prompts of 2, 3 and 1 tokens of 3, completions of 1, 4 and 2 of 4, one demonstration of 2."""
    return {
        "prompt_ids": torch.tensor([[0, 1, 2], [3, 4, 5], [0, 0, 6]]),
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]]),
        "completion_ids": torch.tensor([[7, 0, 0, 0], [8, 9, 10, 11], [12, 13, 0, 0]]),
        "completion_mask": torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]),
        "tool_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]),
        "advantages": torch.tensor([0.1, 0.2, 0.3]),
        "returns": torch.arange(12.0).view(3, 4),
        "importance_sampling_ratio": torch.tensor([[1.0], [2.0], [3.0]]),
        "demonstration_completion_ids": torch.tensor([[0, 0], [1, 2], [0, 0]]),
        "demonstration_completion_mask": torch.tensor([[0, 0], [1, 1], [0, 0]]),
        "num_items_in_batch": torch.tensor(5),
        "names": ["a", "b", "c"],
        "absent": None,
    }


def test_lengths_reach_to_the_last_token_from_the_side_without_padding():
    rows = rollout()
    assert parts(rows) == ["completion", "demonstration_completion", "prompt"]
    assert lengths(rows).tolist() == [[1, 0, 2], [4, 2, 3], [2, 0, 1]]
    holes = {**rows, "completion_mask": torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]])}
    assert lengths(holes)[:, 0].tolist() == [3, 0, 4]
    assert loss_mask(rows).tolist() == [[1, 0, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0]]


def test_what_is_taken_keeps_its_tokens_and_loses_padding():
    taken = take(rollout(), [2, 0], [2, 1, 2])
    assert taken["prompt_ids"].tolist() == [[0, 6], [1, 2]]
    assert taken["prompt_mask"].tolist() == [[0, 1], [1, 1]]
    assert taken["completion_ids"].tolist() == [[12, 13], [7, 0]]
    assert taken["tool_mask"].shape == taken["completion_mask"].shape == (2, 2)
    assert taken["advantages"].tolist() == rollout()["advantages"][[2, 0]].tolist()
    assert taken["returns"].tolist() == [[8.0, 9.0], [0.0, 1.0]]
    assert taken["importance_sampling_ratio"].tolist() == [[3.0], [1.0]]
    assert taken["demonstration_completion_ids"].shape == (2, 1)
    assert taken["num_items_in_batch"] == 5
    assert taken["names"] == ["c", "a"]
    assert taken["absent"] is None


def test_micro_batches_merged_are_the_rollout_that_they_were_cut_from():
    rows = rollout()
    merged = merge([take(rows, [0], [4, 2, 3]), take(rows, [1, 2], [4, 2, 3])])
    assert merged.keys() == rows.keys()
    for name, value in rows.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(merged[name], value)
        else:
            assert merged[name] == value
