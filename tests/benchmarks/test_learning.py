import math

import pytest
import torch

from benchmarks import learning
from benchmarks.hybrid import read
from benchmarks.tables import written_table
from tests.benchmarks.test_cost import InThisProcess
from trl_ext.builtin.arithmetic import arithmetic_prompts
from trl_ext.builtin.tiny_model import tiny_model


def run(method="cispo", updates=8, seed=0, rate=4e-4, clip=5.0, reached=(8, 12, None), accuracy=(0.3, 0.9)):
    settings = {"method": method, "updates": updates, "seed": seed, "learning_rate": rate, "clip": clip}
    more = {"accuracy": list(accuracy), "clipped": 0.02, "seconds": 1.0}
    return {"settings": {**settings, **learning.SIZES}, "reached": list(reached), **more}


def test_a_small_run_is_tuned_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learning, "one_process_each", lambda jobs: InThisProcess())
    monkeypatch.setattr(learning, "fitted_start", lambda settings, work: saved(tmp_path / "start"))
    monkeypatch.setattr(learning, "MINI_BATCH", 16)
    output = tmp_path / "deeper" / "learning.json"
    args = [
        "--steps",
        "16",
        "--updates",
        "8",
        "--learning_rates",
        "1e-3",
        "--output",
        str(output),
        "--work",
        str(tmp_path / "work"),
    ]
    learning.main([*args, "--methods", "dr_grpo", "--seeds"])
    tuning = read(output)
    assert [one["settings"]["clip"] for one in tuning] == [0.2, 0.28]
    assert all(len(one["accuracy"]) == 5 and one["accuracy"][0] < 0.1 for one in tuning)
    learning.main([*args, "--methods", "dr_grpo", "cispo", "ppo", "--seeds", "3"])
    runs = read(output)
    assert runs[:2] == tuning
    assert [one["settings"]["seed"] for one in runs].count(3) == 3
    assert output.with_suffix(".png").stat().st_size > 10_000
    monkeypatch.setattr(learning, "train", lambda job: pytest.fail("these runs are there already"))
    capsys.readouterr()
    learning.main([*args, "--methods", "dr_grpo", "cispo", "ppo", "--seeds", "3"])
    assert capsys.readouterr().out == learning.table(runs) + "\n"


@pytest.mark.parametrize("updates", [8, 16])
def test_all_methods_have_the_same_batches_and_each_its_own_clip(updates, tmp_path):
    names = {"cispo": "CISPOTrainer", "ppo": "PPOTrainer"}
    for method, clips in learning.CLIPS.items():
        settings = run(method, updates, clip=clips[1])["settings"]
        trainer_class, args = learning.trainer_of(settings, tmp_path)
        assert trainer_class.__name__ == names.get(method, "GRPOTrainer")
        assert args.epsilon_high == clips[1]
        assert method == "cispo" or args.epsilon == 0.2
        assert method == "ppo" or args.loss_type == method
        assert (args.scale_rewards == "none") == (method == "dr_grpo")
        assert (args.generation_batch_size, args.num_generations, args.num_iterations) == (64 * updates, 8, 1)
        assert (args.learning_rate, args.beta, args.seed) == (4e-4, 0.0, 0)


def saved(folder):
    if not folder.is_dir():
        tiny_model(seed=3).save_pretrained(folder)
    return folder


def test_accuracy_is_the_probability_of_the_answer_and_the_end():
    problems = arithmetic_prompts()[0].select(range(3))
    model = tiny_model()
    found = learning.expected_accuracy(model, *learning.answer_rows(problems))
    expected = 0.0
    for row in problems:
        ids = learning.answer_rows([row])[0]["input_ids"][0].tolist()
        start = len(row["prompt"])
        assert ids[-1] == model.config.eos_token_id
        logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected += math.exp(sum(logps[place - 1, ids[place]].item() for place in range(start, len(ids)))) / 3
    assert found == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_a_level_is_reached_where_it_is_held():
    accuracy = [0.3, 0.7, 0.5, 0.6, 0.61, 0.62, 0.6, 0.4]
    assert learning.first_held(accuracy, 0.6) == 3 * learning.EVERY
    assert learning.first_held(accuracy, 0.61) is None
    assert learning.first_held([0.9] * 4, 0.6) == 0


def test_rollouts_are_whole_batches():
    assert learning.rollouts(8, 8) == 8 * 64
    assert learning.rollouts(9, 8) == learning.rollouts(16, 16) == 16 * 64


def test_what_reaches_the_highest_level_first_is_taken_and_else_what_comes_nearest():
    at = {"seed": learning.TUNING_SEED}
    slow, fast = run(**at, rate=2e-4, reached=(4, 8, 400)), run(**at, rate=8e-4, reached=(20, 40, 300))
    never, better = run(**at, clip=2.0, reached=(1, 2, None)), run(**at, clip=3.0, reached=(1, 3, None))
    assert learning.tuned([never, slow, fast, better], "cispo", 8) == (8e-4, 5.0)
    assert learning.tuned([better, never], "cispo", 8) == (4e-4, 2.0)
    none = [run(**at, clip=clip, reached=(None,) * 3, accuracy=[best]) for clip, best in ((2.0, 0.4), (5.0, 0.5))]
    assert learning.tuned(none, "cispo", 8) == (4e-4, 5.0)


def test_the_table_says_how_many_got_there():
    runs = [run(seed=learning.TUNING_SEED), run(seed=learning.TUNING_SEED, rate=1e-4, reached=(9, 13, None))]
    runs += [run(seed=seed, reached=(8 * seed + 8, 100 if seed else None, None)) for seed in range(3)]
    cells = learning.table(runs).splitlines()[-1].split(" | ")
    assert cells[:4] == ["| 8", "`cispo`", "0.0004", "5"]
    assert cells[4:7] == ["16 (8 to 24)", "100 (2 of 3)", "none of 3"]
    assert cells[7] == "1,024, 6,656, > 38,400"


def test_the_table_in_the_readme_is_that_of_the_result():
    """To bring it up to date: python -m benchmarks.learning"""
    runs = read(learning.RESULT)
    assert written_table("learning") == learning.table(runs)
    for one in runs:
        assert one["reached"] == [learning.first_held(one["accuracy"], level) for level in learning.LEVELS]


@pytest.mark.parametrize("args", [["--steps", "8"], ["--jobs", "0"], ["--methods", "reinforce"], ["--updates", "4"]])
def test_what_makes_no_sense_is_refused(args, capsys):
    with pytest.raises(SystemExit):
        learning.parse(args)
    assert "error: " in capsys.readouterr().err
