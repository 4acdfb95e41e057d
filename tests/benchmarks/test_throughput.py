"""In its smallest size, so that it is known to work when there is a GPU."""

import json

import pytest

from benchmarks import throughput
from tests.benchmarks.test_cost import InThisProcess

TRY = ["--models", "tiny", "--dtype", "float32", "--prompts", "2", "--group_size", "4", "--micro_batch", "4"]


def test_a_small_run_says_where_the_time_of_a_step_goes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(throughput, "one_process_each", lambda: InThisProcess())
    monkeypatch.setattr(throughput, "MATRIX", {"cpu": 128})
    output = tmp_path / "deeper" / "result.json"
    throughput.main([*TRY, "--completion_length", "6", "--steps", "4", "--output", str(output)])
    result = json.loads(output.read_text())
    assert [run["side"] for run in result["runs"]] == ["trl", "cispo"]
    for run in result["runs"]:
        parts = run["seconds"]
        assert all(len(values) == 2 for values in parts.values())
        assert all(
            step >= sum(others) - 1e-3
            for step, *others in zip(*(parts[p] for p in ("step", "generation", "rewards", "update")), strict=True)
        )
        assert run["tokens_trained"] == [2 * 4 * (16 + 6)] * 2
    assert capsys.readouterr().out.endswith(throughput.table(result) + "\n")


def test_the_rates_are_those_of_the_counts():
    seconds = {"step": [2.0], "generation": [1.0], "rewards": [0.5], "update": [0.25]}
    run = {
        "model": "tiny",
        "side": "trl",
        "parameters": 10**9,
        "seconds": seconds,
        "tokens_trained": [1000],
        "mib": 1.0,
    }
    settings = {"prompts": 2, "group_size": 4, "completion_length": 25, "dtype": "float32"}
    machine = {"device": "cpu", "torch": "2"}
    text = throughput.table({"machine": machine, "settings": settings, "matrix_tflops": 96.0, "runs": [run]})
    cells = text.splitlines()[-1].split(" | ")
    assert cells[2] == "100"
    assert cells[4:] == ["2.000 s", "50.0%", "25.0%", "12.5%", "24 TFLOP/s (25%) |"]


@pytest.mark.parametrize(("name", "size"), [("0.5B", 494_000_000), ("1.5B", 1_543_000_000)])
def test_models_have_the_size_that_they_are_called_by(name, size):
    import torch

    with torch.device("meta"):
        model = throughput.random_llama(dtype="bfloat16", **throughput.MODELS[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize(
    ("args", "said"),
    [(["--steps", "2"], "must be more than 2"), (["--group_size", "3", "--prompts", "3"], "must divide")],
)
def test_what_makes_no_sense_is_refused(args, said, capsys):
    with pytest.raises(SystemExit):
        throughput.parse(args)
    assert said in capsys.readouterr().err
