import json
from pathlib import Path

import matplotlib.image
import pytest

from tests.agents.echo import SayIt
from trl_ext.agents.trajectory import read_trajectories
from trl_ext.cli import main


def test_players_side_by_side_leave_a_table_a_json_a_picture_and_their_episodes(tmp_path, capsys):
    output = tmp_path / "out"
    main(
        ["evaluate", "--env", "grid_world", "--model", "random", "scripted", "--episodes", "40"]
        + ["--env_options", '{"max_turns": 7}', "--output", str(output), "--seed", "1"]
    )  # fmt: skip
    heading, random_line, scripted_line = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["player", "success", "(95%)", "reward"]
    assert scripted_line.split()[:3] == ["scripted", "1.000", "(0.912-1.000)"]
    report = json.loads((output / "evaluation.json").read_text())
    assert (report["env"], report["env_options"], report["seed"]) == ("grid_world", {"max_turns": 7}, 1)
    by_player = {score["player"]: score for score in report["scores"]}
    assert by_player["scripted"]["success"] == 1.0
    assert by_player["random"]["success_low"] < by_player["random"]["success"] < by_player["random"]["success_high"] < 1
    assert random_line.split()[1] == f"{by_player['random']['success']:.3f}"
    assert matplotlib.image.imread(output / "evaluation.png").std() > 0.01
    played = read_trajectories(output / "scripted.jsonl")
    assert len(played) == 40
    assert sum(one.turns for one in played) / 40 == pytest.approx(by_player["scripted"]["turns"])


def test_an_environment_of_ones_own_is_evaluated(capsys):
    main(["evaluate", "--env", "tests.agents.echo:Echo", "--model", "half", "--episodes", "4"])
    assert "0.500" in capsys.readouterr().out


def test_failed_episodes_are_said(capsys):
    main(["evaluate", "--env", "tests.agents.test_evaluate:Faulty", "--model", "half", "--episodes", "6"])
    assert "half: 1 of 6 episodes failed, the first with ZeroDivisionError: oh" in capsys.readouterr().out


def test_every_player_has_a_file_whatever_it_is_called(tmp_path, monkeypatch):
    """A model is a folder, such as the current one: its name need not have a letter."""
    monkeypatch.setattr("trl_ext.agents.transformers_player.TransformersPlayer", lambda *args, seed: SayIt(seed))
    monkeypatch.chdir(tmp_path)
    names = (".", "./моя", "a/b c")
    for name in names:
        Path(name).mkdir(parents=True, exist_ok=True)
    main(["evaluate", "--env", "tests.agents.echo:Echo", "--model", *names, "--episodes", "2", "--output", "out"])
    files = {path.name: len(read_trajectories(path)) for path in (tmp_path / "out").glob("*.jsonl")}
    assert files == {"model.jsonl": 2, "моя.jsonl": 2, "a_b_c.jsonl": 2}


@pytest.mark.slow
def test_a_model_in_a_folder_plays(tiny, tmp_path, capsys):
    main(
        ["evaluate", "--env", "grid_world", "--model", tiny, "--episodes", "3", "--max_new_tokens", "1"]
        + ["--output", str(tmp_path)]
    )  # fmt: skip
    assert tiny in capsys.readouterr().out
    score = json.loads((tmp_path / "evaluation.json").read_text())["scores"][0]
    assert score["tokens"] == score["turns"] == 6.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--env": "grid_word"}, "error: no environment 'grid_word'; close ones: grid_world"),
        (
            {"--model": "expectimax"},
            "error: --model 'expectimax': neither a folder nor a player of grid_world (random, scripted)",
        ),
        ({"--model": "./none"}, "error: --model './none': there is no such folder, and it is no name of the Hub"),
        ({"--model": "builtin:tiny"}, "error: --model 'builtin:tiny': builtin:smollm2 comes with its weights"),
        ({"--env_options": "{"}, "error: --env_options '{': not JSON"),
        ({"--env_options": "[]"}, "error: --env_options '[]': must be a JSON object"),
        ({"--env_options": '{"max_turns": 0}'}, "error: max_turns = 0: must be at least 1"),
        ({"--episodes": "0"}, "error: episodes = 0: must be at least 1"),
        ({"--output": "/proc/none"}, "error: --output '/proc/none' cannot be made"),
    ],
)
def test_wrong_arguments_end_in_one_line(changes, message):
    arguments = {"--env": "grid_world", "--model": "random", **changes}
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *(part for pair in arguments.items() for part in pair)])
    assert str(stop.value).startswith(message)
    assert "\n" not in str(stop.value)
