import json
from pathlib import Path

import pandas as pd
import pytest
import trl.rewards
from trl import ModelConfig

from tests.trainers.training import config
from trl_ext import CISPOConfig
from trl_ext.errors import ConfigError, DatasetError, ModelNotFoundError, RewardError
from trl_ext.recipe import RecipeArguments, load_demonstrations, load_task
from trl_ext.recipe.task import text_continuations

ROWS = [{"prompt": "a", "solution": "1"}, {"prompt": "b", "solution": "2"}]


def load(model="org/model", seed=0, **options):
    return load_task(RecipeArguments(**options), ModelConfig(model_name_or_path=model), config(CISPOConfig, seed=seed))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_local_files_of_every_format_load(tmp_path, suffix):
    path = tmp_path / f"prompts.{suffix}"
    frame = pd.DataFrame(ROWS)
    {
        "jsonl": lambda: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
        "json": lambda: path.write_text(json.dumps(ROWS)),
        "csv": lambda: frame.to_csv(path, index=False),
        "parquet": lambda: frame.to_parquet(path),
    }[suffix]()
    task = load(dataset_name=str(path), reward_funcs=["trl.rewards.accuracy_reward"])
    assert task.train_dataset["prompt"][:] == ["a", "b"]
    assert task.reward_funcs == [trl.rewards.accuracy_reward]
    assert (task.model, task.heldout_dataset, task.measure_prompts) == ("org/model", None, 0)


def test_the_built_in_task_brings_its_reward_and_a_held_out_part():
    task = load(dataset_name="builtin:arithmetic")
    assert [reward.__name__ for reward in task.reward_funcs] == ["exact_answer"]
    assert (len(task.train_dataset), len(task.heldout_dataset), task.score_name) == (240, 60, "accuracy")
    assert task.measure_prompts is None  # all of them


def test_reasoning_gym_takes_options_as_json_and_as_a_mapping():
    as_json = load(dataset_name="reasoning_gym:chain_sum", task_options='{"size": 10, "max_terms": 2}')
    as_mapping = load(dataset_name="reasoning_gym:chain_sum", task_options={"size": 10, "max_terms": 2})
    assert (len(as_json.train_dataset), len(as_json.heldout_dataset)) == (8, 2)
    assert [reward.__name__ for reward in as_json.reward_funcs] == ["reasoning_gym"]
    with pytest.raises(RewardError, match="the scorer of 'countdown' runs completions as Python code"):
        load(dataset_name="reasoning_gym:countdown", task_options='{"size": 4}')
    assert as_json.train_dataset[:] == as_mapping.train_dataset[:]


def test_a_reward_spec_becomes_functions_and_weights(tmp_path):
    path = tmp_path / "reward.json"
    parts = [{"type": "exact_match", "target": "answer", "weight": 3}, {"type": "jaccard", "target": "answer"}]
    path.write_text(json.dumps({"type": "weighted_sum", "components": parts}))
    training_args = config(CISPOConfig)
    recipe_args = RecipeArguments(dataset_name="builtin:arithmetic", reward=str(path))
    task = load_task(recipe_args, ModelConfig(model_name_or_path="org/model"), training_args)
    assert [reward.__name__ for reward in task.reward_funcs] == ["exact_match", "jaccard"]
    assert training_args.reward_weights == [0.75, 0.25]
    with pytest.raises(ConfigError, match=r"--reward .* or --reward_funcs, not both"):
        load(dataset_name="builtin:arithmetic", reward=str(path), reward_funcs=["accuracy_reward"])


def test_a_reward_of_the_users_own_is_imported_from_where_they_stand(tmp_path, monkeypatch):
    Path(tmp_path / "my_rewards_of_test.py").write_text(
        "def one(completions, **c):\n    return [1.0] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    task = load(dataset_name="builtin:arithmetic", reward_funcs=["my_rewards_of_test.one", "os.getcwd"])
    assert [reward.__name__ for reward in task.reward_funcs] == ["one", "getcwd"]
    assert task.score_name == "reward"


@pytest.mark.parametrize("name", ["accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"])
def test_rewards_of_trl_are_refused_for_prompts_that_are_texts(tmp_path, name):
    """They would raise at the first completion."""
    with pytest.raises(TypeError):
        getattr(trl.rewards, name)(completions=["a text"], solution=["1"])
    with pytest.raises(ConfigError, match=rf"{name} scores replies to chat messages only.* give a spec, such as"):
        load(dataset_name="builtin:arithmetic", reward_funcs=[name])
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": "a"}], "solution": "1"}) + "\n")
    assert load(dataset_name=str(path), reward_funcs=[name]).reward_funcs == [getattr(trl.rewards, name)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dataset_name": "missing.jsonl"}, DatasetError, r"'missing.jsonl': no such file"),
        ({"dataset_name": "org/none"}, DatasetError, r"'org/none' cannot be loaded"),
        ({"dataset_name": "builtin:algebra"}, ConfigError, r"the built-in task is builtin:arithmetic"),
        ({"dataset_name": "builtin:arithmetic", "model": "builtin:huge"}, ConfigError, r"the built-in models are"),
        ({"dataset_name": "builtin:arithmetic", "reward_funcs": ["acuracy"]}, ConfigError, r"no 'acuracy'; give acc"),
        ({"dataset_name": "builtin:arithmetic", "reward_funcs": ["os.nope"]}, ConfigError, r"'os.nope' cannot be imp"),
        (
            {"dataset_name": "reasoning_gym:chain_sum", "task_options": "{"},
            ConfigError,
            r"task_options = '{': not JSON",
        ),
        (
            {"dataset_name": "builtin:arithmetic", "reward_model_name_or_path": "./none"},
            ModelNotFoundError,
            r"model './none': no such folder",
        ),
        ({"dataset_name": "builtin:arithmetic", "measure_prompts": -1}, ConfigError, r"measure_prompts = -1: must be"),
        ({"dataset_name": "reasoning_gym:chain_sum", "task_options": "3"}, ConfigError, r"must be a JSON object"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(options, error, message):
    with pytest.raises(error, match=message) as caught:
        load(**options)
    assert "\n" not in str(caught.value)


def test_bad_files_splits_and_missing_rewards_are_one_line(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("{")
    with pytest.raises(DatasetError, match=r"bad.jsonl' cannot be loaded"):
        load(dataset_name=str(path), reward_funcs=["accuracy_reward"])
    path.write_text("")
    with pytest.raises(DatasetError, match=r"bad.jsonl' is empty: it must have a row for each prompt"):
        load(dataset_name=str(path), reward_funcs=["accuracy_reward"])
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(DatasetError, match=r"no split 'validation' \(it has \['train'\]\)"):
        load(dataset_name=str(path), dataset_train_split="validation")
    with pytest.raises(ConfigError, match=r"no reward for .*: give --reward SPEC"):
        load(dataset_name=str(path))


def test_a_text_file_is_prompts_and_what_follows(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(
        " ".join(map(str, range(80))) + "\n\n" + "too short\n \n" + " ".join("abcdefghijklmnopqrstuvwxyz0123456789")
    )
    rows = text_continuations(str(path))
    assert len(rows) == 3
    assert rows[1] == {
        "prompt": " ".join(map(str, range(36, 48))),
        "completion": " " + " ".join(map(str, range(48, 72))),
    }
    with pytest.raises(DatasetError, match="no paragraph has 900 words"):
        text_continuations(str(path), 100, 800)
    with pytest.raises(DatasetError, match=r"'none.txt' cannot be read"):
        text_continuations("none.txt")


def test_demonstrations_are_found_by_name(tmp_path):
    assert set(load_demonstrations("builtin:arithmetic").column_names) == {"prompt", "completion"}
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    assert load_demonstrations(str(path))[0] == {"prompt": "a", "completion": "b"}
    with pytest.raises(ConfigError, match="the built-in demonstrations are builtin:arithmetic"):
        load_demonstrations("builtin:algebra")
