import json

import jsonschema
import matplotlib.image
import pandas as pd
import pytest

from trl_ext.cli import main

ROWS = [
    {"prompt": "1+1=", "completion": "2", "answer": "2"},
    {"prompt": "1+2=", "completion": "4", "answer": "3"},
    {"prompt": "1+3=", "completion": [{"role": "assistant", "content": "4"}], "answer": "4", "level": 1},
    {"prompt": "1+4=", "completion": "5", "answer": None},
]
SPEC = {
    "type": "weighted_sum",
    "components": [{"type": "exact_match", "target": "answer"}, {"type": "jaccard", "target": "answer", "weight": 0}],
}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def test_list_and_show_and_schema(capsys):
    main(["rewards", "list"])
    listed = capsys.readouterr().out
    assert "exact_match" in listed
    assert listed.endswith("of several components: weighted_sum, product, minimum, conditioned\n")
    main(["rewards", "show", "levenshtein"])
    assert "lowercase (bool, default False)" in capsys.readouterr().out
    main(["rewards", "schema"])
    jsonschema.Draft202012Validator(json.loads(capsys.readouterr().out)).validate(SPEC)


def test_score_prints_a_table_and_writes_scores_and_a_picture(data, tmp_path, capsys):
    files = ["--output", str(tmp_path / "scores.parquet"), "--histogram", str(tmp_path / "scores.png")]
    main(["rewards", "score", "--spec", json.dumps(SPEC), "--data", data, "--batch_size", "3", *files])
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["weighted_sum"] == lines["exact_match"] == ["0.6667", "0.4714", "0.0000", "1.0000", "1"]
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    assert scores["score_exact_match"].fillna(-1).tolist() == [1.0, 0.0, 1.0, -1.0]
    assert scores["completion"].tolist() == ["2", "4", "4", "5"]  # text, whatever the format
    assert matplotlib.image.imread(tmp_path / "scores.png").std() > 0.01


def test_rows_of_any_json_are_read_and_stored(tmp_path, capsys):
    """Ends of lines that JSON leaves in a text, empty lines, columns of mixed kinds, scores of an earlier run."""
    rows = [
        {"completion": "a\u2028\x85b", "target": "a\u2028\x85b", "meta": {}, "score_exact_match": 0.25},
        {"completion": "b", "target": 3, "meta": ["c"], "size": 10**30},
        {"completion": None, "target": ["c"]},
    ]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n\n".join([*lines, r'{"completion": "\ud800", "target": "\ud800"}', ""]), encoding="utf-8-sig")
    output = tmp_path / "scores.parquet"
    main(["rewards", "score", "--spec", '{"type": "exact_match"}', "--data", str(path), "--output", str(output)])
    stored = pd.read_parquet(output)
    assert stored["score_exact_match"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert stored["completion"].tolist() == ["a\u2028\x85b", "b", "", "?"]
    assert [json.loads(value) for value in stored["target"]] == ["a\u2028\x85b", 3, ["c"], "\ud800"]
    assert stored["meta"].fillna("").tolist() == ["{}", '["c"]', "", ""]
    assert stored["size"].fillna("").tolist() == ["", str(10**30), "", ""]


def test_plugins_are_loaded_for_every_action(tmp_path, capsys):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from trl_ext.rewards import register_reward\n"
        "@register_reward('shouting', cost='1 us')\n"
        "def shouting(completions):\n"
        '    """The share of capital letters."""\n'
        "    return [sum(map(str.isupper, text)) / max(len(text), 1) for text in completions]\n"
    )
    main(["rewards", "show", "shouting", "--plugins", str(plugin)])
    assert "The share of capital letters." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rewards", "show", "exactmatch"], "error: no reward type 'exactmatch'; close ones: exact_match"),
        (["rewards", "score", "--spec", "none.json", "--data", "x"], "error: reward spec 'none.json' cannot be read"),
        (["rewards", "score", "--spec", "{}", "--data", "x"], "error: spec: needs a 'type'"),
        (["rewards", "score", "--spec", json.dumps(SPEC), "--data", "none.jsonl"], "error: --data 'none.jsonl' cannot"),
        (
            ["rewards", "score", "--spec", json.dumps(SPEC), "--data", "x", "--output", "none/x.parquet"],
            "error: --output 'none/x.parquet': there is no such folder",
        ),
        (
            ["rewards", "score", "--spec", json.dumps(SPEC), "--data", "x", "--histogram", "none/x.png"],
            "error: --histogram 'none/x.png': there is no such folder",
        ),
        (
            ["rewards", "score", "--spec", json.dumps(SPEC), "--data", "x", "--output", "."],
            "error: --output '.' is a folder: give the name of a file",
        ),
        (["rewards", "list", "--plugins", "none.py"], "error: plugin 'none.py': no such Python file"),
        (["accelerate", "pick", "--model", "builtin:huge"], "error: --model 'builtin:huge': the built-in models are"),
        (["accelerate", "pick", "--model", "/none/of/them"], "error: --model '/none/of/them': there is no such folder"),
    ],
)
def test_wrong_arguments_end_in_one_line(args, message):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert str(stop.value).startswith(message)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{\n", ":1 is not JSON"),
        ('{"completion": "a"}\n{}\n', ":2: must be an object with a 'completion'"),
    ],
)
def test_bad_rows_are_named_by_their_line(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["rewards", "score", "--spec", json.dumps(SPEC), "--data", str(path)])
    assert message in str(stop.value)


def test_rows_in_another_encoding_are_refused_in_one_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"completion": "é"}', encoding="latin-1")
    with pytest.raises(SystemExit, match=r"^error: --data '.*rows.jsonl' is no text in UTF-8: "):
        main(["rewards", "score", "--spec", json.dumps(SPEC), "--data", str(path)])


@pytest.mark.parametrize("ending", ["/proc/scores.parquet", "/proc/scores.png", "scores.none"])
def test_files_that_cannot_be_written_are_named_in_one_line(data, tmp_path, ending):
    option = "--output" if ending.endswith("parquet") else "--histogram"
    path = str(tmp_path / ending)
    with pytest.raises(SystemExit) as stop:
        main(["rewards", "score", "--spec", json.dumps(SPEC), "--data", data, option, path])
    assert str(stop.value).startswith(f"error: {option} {path!r} cannot be written: ")
    assert "\n" not in str(stop.value)


def test_a_batch_size_below_1_is_refused(data):
    with pytest.raises(SystemExit, match=r"--batch_size = 0: must be at least 1"):
        main(["rewards", "score", "--spec", json.dumps(SPEC), "--data", data, "--batch_size", "0"])
