import json
import statistics
from pathlib import Path

import pytest

from benchmarks import update
from benchmarks.tables import written_table

TRY = ["--rounds", "1", "--hidden_size", "16", "--layers", "1", "--vocabulary", "50", "--profiles", "nearly constant"]


def test_a_small_run_writes_the_result_its_table_and_its_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(update, "ZERO_VARIANCE", (0, 40))
    output = tmp_path / "deeper" / "result.json"
    update.main([*TRY, "--output", str(output)])
    result = json.loads(output.read_text())
    full, partly = result["cases"]
    assert {name: len(seconds) for name, seconds in full["seconds"].items()} == {"trl": 1, "lean": 1}
    assert {name: len(seconds) for name, seconds in partly["seconds"].items()} == {"trl": 1, "lean": 1}
    assert 0.9 < full["padded_tokens"]["lean"][0] / full["padded_tokens"]["trl"][0] < 1.0
    assert 0.55 < partly["padded_tokens"]["lean"][0] / partly["padded_tokens"]["trl"][0] < 0.6
    assert capsys.readouterr().out.endswith(update.table(result) + "\n")  # DeepSpeed talks when imported
    assert output.with_suffix(".png").stat().st_size > 5000


def test_a_run_stops_where_the_weights_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(update, "ZERO_VARIANCE", (80,))
    monkeypatch.setattr(update, "largest_difference", lambda one, other: 0.5)
    with pytest.raises(SystemExit, match=r"nearly constant, 80%: the weights are 5\.0e-01 of their size apart"):
        update.main([*TRY, "--output", str(tmp_path / "result.json")])
    assert not (tmp_path / "result.json").exists()


def test_lengths_are_as_is_said() -> None:
    heavy, uniform, constant = (update.lengths(profile) for profile in update.PROFILES)
    assert len(heavy) == len(uniform) == len(constant) == update.GROUPS * update.GROUP
    assert round(statistics.mean(heavy)) == 127
    assert max(heavy) == 512
    assert statistics.median(heavy) < 110
    assert max(uniform) <= 256
    assert (min(constant), max(constant)) == (120, 128)


def test_the_table_in_the_readme_is_that_of_the_result() -> None:
    """To bring it up to date: python -m benchmarks.update"""
    result = json.loads(update.RESULT.read_text())
    assert written_table("update") == update.table(result)
    assert [case["profile"] for case in result["cases"]] == [name for name in update.PROFILES for _ in range(3)]


def test_a_run_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        update.parse(["--rounds", "0"])
    assert "--rounds must be 1 or more" in capsys.readouterr().err
