import json
import statistics
from multiprocessing import forkserver

import pytest

from benchmarks import cost, processes
from benchmarks.tables import written_table

TRY = ["--steps", "2", "--hidden_size", "16", "--layers", "1", "--vocabulary", "50"]


def test_a_small_run_writes_the_result_its_table_and_its_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cost, "SWEEPS", {"completion_length": (64,), "group_size": (2,), "rewards": (1, 3)})
    monkeypatch.setattr(cost, "one_process_each", lambda: InThisProcess())
    output = tmp_path / "deeper" / "result.json"
    cost.main([*TRY, "--output", str(output)])
    result = json.loads(output.read_text())
    points = [tuple(point[name] for name in cost.BASE) for point in result["points"]]
    assert points == [(64, 8, 1), (64, 2, 1), (64, 8, 3)]
    assert all(len(point[side]["seconds"]) == 1 for point in result["points"] for side in cost.SIDES)
    assert capsys.readouterr().out.endswith(cost.table(result) + "\n")
    assert output.with_suffix(".png").stat().st_size > 5000


class InThisProcess:
    """A pool that starts no process: that takes longer than what is measured."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    imap = imap_unordered = staticmethod(map)

    def apply(self, function, args):
        return function(*args)


def test_a_point_has_the_rewards_groups_and_lengths_that_it_says():
    args = cost.parse(TRY)
    model = cost.random_llama(args.hidden_size, args.layers, args.vocabulary, args.dtype)
    trainer = cost.make_trainer("cispo", model, args, completion_length=5, group_size=4, rewards=3)
    lengths = []
    trainer.reward_funcs[0] = lambda completion_ids, **columns: (
        lengths.extend(map(len, completion_ids)) or [float(i) for i in range(len(completion_ids))]
    )
    trainer.train()
    assert lengths == [5] * 16 * 2
    assert len(trainer.reward_funcs) == 3
    assert trainer.args.gradient_accumulation_steps == 2


def test_memory_is_that_of_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(processes, "PRELOADED", [])
    with processes.one_process_each() as pool:
        first, second = pool.map(allocate, [64, 0], chunksize=1)
    forkserver._forkserver._stop()  # other tests fork from one that has imported what they need
    assert first[0] != second[0]
    assert first[1] >= 64
    assert second[1] < 32


def allocate(mib):
    import os

    before = cost.peak_mib("cpu")
    kept = bytearray(b"x") * (mib * 2**20)
    return os.getpid(), cost.peak_mib("cpu") - before, len(kept) * 0


def test_a_sweep_is_in_order_and_has_the_point_that_all_share():
    points = [cost.BASE, cost.BASE | {"group_size": 2}, cost.BASE | {"rewards": 4}]
    found = cost.sweep({"points": points}, "group_size")
    assert [point["group_size"] for point in found] == [2, 8]


def test_the_table_in_the_readme_is_that_of_the_result():
    """To bring it up to date: python -m benchmarks.cost"""
    result = json.loads(cost.RESULT.read_text())
    assert written_table("cost") == cost.table(result)
    for name, values in cost.SWEEPS.items():
        points = cost.sweep(result, name)
        assert tuple(point[name] for point in points) == values
        assert all(statistics.median(point[side]["seconds"]) > 0 for point in points for side in cost.SIDES)


def test_a_single_step_is_refused(capsys):
    with pytest.raises(SystemExit):
        cost.parse(["--steps", "1"])
    assert "the first is not counted" in capsys.readouterr().err
