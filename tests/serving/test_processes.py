import json
import re

from tests.agents.talk import ROWS, Talk
from tests.launching import on_two_processes
from tests.serving.playing import PLAY, play, trainer_of
from trl_ext.agents.rollout import environment_rollout
from trl_ext.agents.trajectory import read_trajectories

GREEDY = {"generation_kwargs": {"do_sample": False, "top_p": None, "top_k": None}}


def test_the_main_process_serves_and_all_generate_for_the_workers(tiny, tmp_path):
    """12 rows in groups of 4 on two processes; then both end with one report of too many failures."""
    job = {"path": tiny, "folder": str(tmp_path / "t"), "result": str(tmp_path / "result.json")}
    on_two_processes("tests.serving.rollout_on_processes", json.dumps(job))
    first, second = json.loads((tmp_path / "result.json").read_text())
    assert first == second
    assert re.match(r"4 of 12 episodes failed, max_failures = 1: turn 1: ValueError: broken pipe \(x4\)", first)
    recorded = read_trajectories(tmp_path / "t")
    assert len(recorded) == 24
    groups = [[one.row["seed"] for one in recorded if one.group == group] for group in ("0.0", "0.1", "0.2", "1.0")]
    assert [len(seeds) for seeds in groups] == [4, 4, 4, 4]
    assert all(len(set(seeds)) == 1 for seeds in groups)
    alone = trainer_of(tiny, environment_rollout(Talk, step_timeout=300.0, **PLAY), config_options=GREEDY)
    for one in [one for one in recorded if one.step == 0]:  # each process has the episodes of its own rows
        (same,) = play(alone, ROWS.select([one.row["seed"]]))["trajectory"]
        assert (one.completion_ids, one.rewards) == (same.completion_ids, same.rewards)
