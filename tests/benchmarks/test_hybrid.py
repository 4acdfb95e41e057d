import re

import pytest

from benchmarks import hybrid
from benchmarks.tables import written_table
from trl_ext import HybridConfig


def run(mode, seed, train, kind="half_wrong", heldout=0.25):
    settings = {"mode": mode, "demonstrations": kind, "seed": seed, **hybrid.SIZES}
    before = {"train_before": 0.25, "heldout_before": 0.125}
    return {"settings": settings, "train": train, "heldout": heldout, **before, "rl_share": 0.5, "seconds": 1.0}


def test_a_small_run_trains_and_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    output = tmp_path / "deeper" / "hybrid.json"
    sizes = ["--steps", "6", "--start_steps", "2", "--per_problem", "2", "--seeds", "0"]
    args = [*sizes, "--demonstrations", "half_wrong", "--output", str(output), "--work", str(tmp_path / "work")]
    with monkeypatch.context() as here:
        here.setattr(hybrid, "in_a_process", hybrid.train)  # what a process starts with, takes longer than the run
        hybrid.main([*args, "--modes", "gate"])
    first = hybrid.read(output)
    hybrid.main([*args, "--modes", "gate", "sft_then_rl"])
    runs = hybrid.read(output)
    assert runs[:1] == first
    assert [(one["settings"]["mode"], one["rl_share"]) for one in runs] == [("gate", 1.0), ("sft_then_rl", 0.6667)]
    assert runs[0]["train_before"] == runs[1]["train_before"]  # the same start
    assert all(0 <= one[split] <= 1 for one in runs for split in ("train", "heldout"))
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["start-2-0"]
    monkeypatch.setattr(hybrid, "in_a_process", lambda *args: pytest.fail("these runs are there already"))
    capsys.readouterr()
    hybrid.main([*args, "--modes", "sft_then_rl", "gate"])
    assert capsys.readouterr().out == hybrid.table(runs) + "\n"


@pytest.mark.parametrize("mode", hybrid.MODES)
def test_every_mode_has_a_third_of_its_steps_on_demonstrations_where_it_can_say_so(mode):
    args = hybrid.recipe_options(HybridConfig, 0, 300, **hybrid.MODES[mode](300))
    assert args.mode == mode
    assert (args.learning_rate, args.per_device_train_batch_size, args.num_ppo_epochs) == (1e-3, 240, 2)
    if mode in ("alternate", "curriculum", "sequential"):
        assert args.phases(300).count("sft") == pytest.approx(100, abs=2)


def test_demonstrations_are_half_wrong_or_all_right_and_know_the_answer():
    settings = {"demonstrations": "half_wrong", "per_problem": 8, "seed": 3}
    for kind, expected in (("half_wrong", 0.5), ("correct", 1.0)):
        rows = hybrid.demonstrations({**settings, "demonstrations": kind})
        right = [row["completion"] == row["answer"] for row in rows]
        assert sum(right) / len(right) == pytest.approx(expected, abs=0.05)


def test_the_table_has_mean_and_spread_and_takes_rl_alone_for_both_kinds():
    runs = [run("joint", 0, 0.5), run("joint", 1, 0.75), run("rl_only", 0, 0.9), run("joint", 0, 1.0, "correct")]
    text = hybrid.table(runs)
    assert "trained on 0.250 (0.250 to 0.250)" in text
    joint, alone = (line.split(" | ") for line in text.splitlines()[-2:])
    assert joint == ["| `joint`", *("0.625 (0.500 to 0.750)", "0.250 (0.250 to 0.250)", "50%"),
                     *("1.000 (1.000 to 1.000)", "0.250 (0.250 to 0.250)", "50%"), "2 |"]  # fmt: skip
    assert alone[1] == alone[4] == "0.900 (0.900 to 0.900)"


def test_a_run_that_fails_ends_the_benchmark_and_keeps_what_is_there(tmp_path):
    output = tmp_path / "hybrid.json"
    hybrid.append(output, run("joint", 0, 0.5))
    with pytest.raises(SystemExit, match=r"failed:\n(.|\n)*KeyError: 'steps'"):
        hybrid.in_a_process({"mode": "joint", "seed": 0}, tmp_path)
    assert hybrid.read(output) == [run("joint", 0, 0.5)]


def test_the_table_in_the_readme_is_that_of_the_result():
    """To bring it up to date: python -m benchmarks.hybrid"""
    runs = hybrid.read(hybrid.RESULT)
    assert written_table("hybrid") == hybrid.table(runs)
    for mode in hybrid.ARMS:
        for kind in hybrid.DEMONSTRATIONS:
            assert len(hybrid.chosen(runs, mode, kind)) == 3, (mode, kind)


@pytest.mark.parametrize("args", [["--steps", "3"], ["--per_problem", "0"], ["--modes", "mixed"]])
def test_what_makes_no_sense_is_refused(args, capsys):
    with pytest.raises(SystemExit):
        hybrid.parse(args)
    assert re.search("error: (argument|--steps)", capsys.readouterr().err)
