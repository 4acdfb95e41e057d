import gc
import json

from benchmarks import server
from benchmarks.tables import written_table


def test_a_small_run_plays_all_episodes_and_says_how_fast(tmp_path, capsys):
    output = tmp_path / "deeper" / "server.json"
    server.main(["--workers", "4", "--episodes", "12", "--rounds", "2", "--output", str(output)])
    result = json.loads(output.read_text())
    assert [one["turns"] >= 12 for one in result["rounds"]] == [True, True]
    assert all(0 < one["p50_ms"] <= one["p99_ms"] < 1000 * one["seconds"] for one in result["rounds"])
    assert all(0 <= one["pause_ms"] < 1000 * one["seconds"] for one in result["rounds"])
    assert gc.get_freeze_count() == 0
    assert all(10 < one["memory_mib"] < 10_000 for one in result["rounds"])
    assert capsys.readouterr().out == server.table(result) + "\n"


def test_the_table_that_is_shown_is_that_of_the_result():
    assert written_table("server") == server.table(json.loads(server.RESULT.read_text()))
