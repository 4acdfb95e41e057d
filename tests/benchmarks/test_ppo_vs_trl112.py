import json

import pytest

from benchmarks import ppo_vs_trl112 as benchmark
from benchmarks import tables


def test_the_table_in_the_readme_is_that_of_the_result():
    """To bring it up to date: python -m benchmarks.ppo_vs_trl112"""
    assert tables.written_table("ppo") == benchmark.table(json.loads(benchmark.RESULT.read_text()))


def test_medians_are_over_the_updates_of_all_runs_and_ratios_are_ours_over_trls():
    def run(seconds, mib):
        return {"seconds": seconds, "mib": mib, "trl": "1", "hardware": "2 cores"}

    runs = {"ours": [run([1.0, 5.0], 100), run([2.0], 300)], "trl112": [run([4.0], 800)]}
    result = benchmark.summarize(runs, benchmark.parse([]))
    assert (result["ours"]["seconds"], result["ours"]["mib"]) == (2.0, 200)
    assert (result["seconds_ratio"], result["mib_ratio"]) == (0.5, 0.25)


def test_a_table_without_its_place_in_the_readme_is_refused(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- here -->\nold\n<!-- /here -->\nb\n")
    monkeypatch.setattr(tables, "README", readme)
    tables.write_table("here", "new")
    assert readme.read_text() == "a\n<!-- here -->\nnew\n<!-- /here -->\nb\n"
    with pytest.raises(SystemExit, match="no lines <!-- there -->"):
        tables.write_table("there", "new")
    assert tables.written_table("here") == "new"
