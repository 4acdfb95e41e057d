import json
import time

import pytest

from benchmarks import overhead
from benchmarks.tables import written_table
from trl_ext.trainers.rollouts import RolloutsMixin

TRY = ["--steps", "3", "--hidden_size", "16", "--layers", "1", "--vocabulary", "50"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(overhead, "WARM_UP", 1)
    monkeypatch.setattr(overhead, "LARGER", 1)
    lengths = [8 + number % 3 for number in range(80)]
    monkeypatch.setattr(overhead.update, "lengths", lambda profile: lengths)


def test_a_small_run_writes_the_result(tmp_path, capsys):
    output = tmp_path / "deeper" / "result.json"
    overhead.main([*TRY, "--output", str(output)])
    result = json.loads(output.read_text())
    assert {side: len(places) for side, places in result["median_ms"].items()} == {"cispo": 10, "tiles": 10}
    assert result["interval_ms"][0] <= result["overhead_ms"] <= result["interval_ms"][1]
    assert 0 < result["profiled_percent"] < 50
    assert capsys.readouterr().out.endswith(overhead.table(result) + "\n")


def test_what_our_layer_does_is_seen_by_both_measures(monkeypatch):
    original = RolloutsMixin._generate_and_score_completions

    def slow(self, inputs):
        end = time.thread_time() + 0.4
        while time.thread_time() < end:
            pass
        return original(self, inputs)

    code = compile("", overhead.PACKAGE + "/slow.py", "exec")
    slow.__code__ = slow.__code__.replace(co_filename=code.co_filename)
    monkeypatch.setattr(RolloutsMixin, "_generate_and_score_completions", slow)
    args = overhead.parse(TRY)
    seconds = overhead.take_turns({side: overhead.make(side, args, 3) for side in overhead.SIDES})
    found = overhead.overhead_ms(list(zip(seconds["cispo"], seconds["tiles"], strict=True)))
    assert found == pytest.approx(400, abs=200)
    assert overhead.own_share(overhead.make("cispo", args, 1)) > 25


def test_trainers_take_turns_by_micro_batches_and_end_together_when_one_fails():
    args, order = overhead.parse(TRY), []
    trainers = {side: overhead.make(side, args, 3) for side in overhead.SIDES}
    for side, trainer in trainers.items():
        trainer.training_step = noted(trainer.training_step, side, order)
    with pytest.raises(RuntimeError, match="in the sixth turn"):
        overhead.take_turns(trainers)
    assert order[:6] == ["cispo", "tiles", "tiles", "cispo", "cispo", "tiles"]


def noted(original, side, order):
    def step(*inputs, **named):
        order.append(side)
        if len(order) == 6:
            raise RuntimeError("in the sixth turn")
        return original(*inputs, **named)

    return step


def test_the_overhead_is_the_sum_of_the_median_differences_and_its_interval_holds_it():
    steps = [([2.0 + 0.01 * n, 3.0], [1.0, 2.5 - 0.01 * n]) for n in (-2, -1, 0, 1, 50)]
    assert overhead.overhead_ms(steps) == pytest.approx(1000 * (1.0 + 0.5))
    low, high = overhead.interval_ms(steps, samples=200)
    assert 1000 * 1.46 <= low < 1500 < high <= 1000 * 2.5


def test_the_table_in_the_readme_is_that_of_the_result():
    """To bring it up to date: python -m benchmarks.overhead"""
    result = json.loads(overhead.RESULT.read_text())
    assert written_table("overhead") == overhead.table(result)
    assert result["settings"] == overhead.SIZES


def test_a_run_of_nothing_is_refused(capsys):
    with pytest.raises(SystemExit):
        overhead.parse(["--steps", "0"])
    assert "--steps must be 1 or more" in capsys.readouterr().err
