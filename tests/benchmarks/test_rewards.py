import json
import statistics
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import reward_data as data
from benchmarks import reward_peers as peers
from benchmarks import rewards
from benchmarks.tables import written_table
from trl_ext.rewards import make_reward
from trl_ext.rewards.text import last_boxed


def groups(rows: data.Rows) -> list[list[str]]:
    return [rows.completions[i : i + data.GROUP] for i in range(0, len(rows.completions), data.GROUP)]


def test_a_small_run_compares_scores_and_writes_the_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rewards.CASES["spelling"], "naive", 8)
    names = [
        "rouge_l",
        "ter_nltk",
        "levenshtein_rapidfuzz",
        "json_schema",
        "math",
        "spelling",
        "format",
        "format_re",
        "length",
    ]
    output = tmp_path / "deeper" / "rewards.json"
    rewards.main(["--only", *names, "--completions", "16", "--repeats", "1", "--seconds", "0", "--output", str(output)])
    result = json.loads(output.read_text())
    assert [row["reward"] for row in result["rewards"]] == names
    for row in result["rewards"]:
        assert row["completions"] == {"ours": 16, "theirs": 8 if row["reward"] == "spelling" else 16}
        assert row["largest_difference"] <= row["tolerance"]
        assert all(len(seconds) == 1 for seconds in row["seconds"].values())
        assert row["ratio"] > 0
    assert capsys.readouterr().out == rewards.table(result) + "\n"
    assert result["machine"].keys() == {"cpu_cores", "torch_threads", "device", "torch", "transformers"}


@pytest.mark.parametrize("wrong", [0.5, None])
def test_a_run_stops_where_the_scores_differ(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: float | None
) -> None:
    case = rewards.Case("a wrong library", lambda folder: ({"type": "exact_match"}, lambda *row: wrong))
    monkeypatch.setitem(rewards.CASES, "exact_match", case)
    with pytest.raises(
        SystemExit, match=f"exact_match: completion 0 has 0.0 by trl-ext and {wrong} by a wrong library"
    ):
        rewards.main(["--only", "exact_match", "--completions", "8", "--output", str(tmp_path / "rewards.json")])
    assert not (tmp_path / "rewards.json").exists()


def test_the_table_in_the_readme_is_that_of_the_result() -> None:
    """To bring it up to date: make bench-rewards"""
    result = json.loads(rewards.RESULT.read_text())
    assert written_table("rewards") == rewards.table(result)
    assert [row["reward"] for row in result["rewards"]] == list(rewards.CASES)


def test_too_few_completions_for_a_group_are_refused() -> None:
    with pytest.raises(SystemExit):
        rewards.parse(["--completions", "7"])


@pytest.mark.parametrize("draw", [data.prose, data.mathematics, data.json_objects, data.programs])
def test_a_seed_always_gives_the_same_rows_and_another_seed_gives_others(draw) -> None:
    assert draw(3, 4) == draw(3, 4)
    assert not set(draw(3, 4).completions) & set(draw(4, 4).completions)


def test_prose_is_as_long_and_as_often_repeated_as_is_said() -> None:
    rows = data.prose(0, 64)
    assert len(rows.completions) == len(rows.prompts) == len(rows.target) == 512
    lengths = [len(text.split()) for text in rows.completions]
    assert min(lengths) >= 60
    assert max(lengths) <= 200
    assert 80 < statistics.median(lengths) < statistics.mean(lengths)
    repeated = 1 - sum(len(set(group)) for group in groups(rows)) / 512
    assert 0.10 < repeated < 0.15


def test_completions_of_a_group_say_what_their_reference_says_and_others_do_not() -> None:
    rows = data.prose(0, 16)
    reward = make_reward({"type": "rouge_2"})
    own = reward(rows.completions, target=rows.target)
    other = reward(rows.completions, target=rows.target[8:] + rows.target[:8])
    assert statistics.mean(own) > 0.3
    assert statistics.mean(other) < 0.05


def test_mathematics_has_about_three_answers_to_a_problem_of_which_half_are_right() -> None:
    rows = data.mathematics(0, 63)
    assert sum(target.lstrip("-").isdigit() for target in rows.target) == 2 * len(rows.target) / 3
    answers = [Counter(filter(None, map(last_boxed, group))) for group in groups(rows)]
    assert 2.5 < statistics.mean(map(len, answers)) < 3.5
    scores = make_reward({"type": "math"})(rows.completions, target=rows.target)
    assert 0.4 < statistics.mean(scores) < 0.65
    assert max(len(text.split()) for text in rows.completions) < 260


def test_of_the_programs_a_half_passes_its_3_to_5_tests_as_it_does_in_a_python_of_its_own() -> None:
    rows = data.programs(0, 64)
    assert {len(asserts) for asserts in rows.target} == {3, 4, 5}
    peer = peers.python_processes()
    scores = [peer(*row) for row in list(zip(rows.completions, rows.prompts, rows.target, strict=True))[::16]]
    assert 0.2 < statistics.mean(scores) < 0.6
