"""recipes/agent.py as a user runs it, in a process of its own."""

import json
from pathlib import Path

import pytest
import yaml
from trl import GRPOConfig

from tests.agents.echo import Echo
from tests.recipes.test_recipes import launch
from tests.tracking.langfuse_server import LangfuseServer
from tests.tracking.wandb_run import OfflineRun
from tests.trainers.training import config, make_trainer
from trl_ext import CISPOConfig, CISPOTrainer, PPOConfig
from trl_ext.agents.sampled_episode import DEFAULT_TURNS
from trl_ext.agents.trajectory import read_trajectories
from trl_ext.errors import ConfigError, TrlExtError
from trl_ext.recipe import parse_recipe_args
from trl_ext.recipe.agent_rollout import _turns_of, agent_rollout
from trl_ext.recipe.agent_task import AgentArguments, chosen_trainer, default_config, load_agent_task, whole_walks
from trl_ext.recipe.arguments import words_of
from trl_ext.tracking.callbacks import read_metrics

RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = {"cispo": CISPOConfig, "ppo": PPOConfig, "grpo": GRPOConfig}


@pytest.mark.slow
def test_the_recipe_learns_and_leaves_its_episodes(tmp_path, monkeypatch):
    """A quarter of the run that the recipe makes without arguments, followed by W&B, TensorBoard and Langfuse."""
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", "pk")
    monkeypatch.setenv("LANGFUSE_SECRET_KEY", "sk")
    monkeypatch.setenv("LANGFUSE_TIMEOUT", "60")
    config = (RECIPES / "agent.yaml").read_text().replace("report_to: none", "report_to: [wandb, tensorboard]")
    (tmp_path / "agent.yaml").write_text(config)
    options = ("--config", str(tmp_path / "agent.yaml"), "--output_dir", str(tmp_path / "my run"))
    with LangfuseServer() as server:
        monkeypatch.setenv("LANGFUSE_BASE_URL", server.url)
        result = launch("agent.py", *options, "--max_steps", "20", "--heldout_episodes", "128")
    assert result.returncode == 0, result.stderr[-3000:]
    tables = OfflineRun(tmp_path).tables("episodes")
    assert [rows[0]["step"] for rows in tables if rows[0]["split"] == "train"] == [4, 8, 14, 18]  # every fifth step
    assert {len(rows) for rows in tables} == {64}
    roots = [span for span in server.spans if not span["parent"]]
    assert len(roots) > 64
    assert {span["session.id"] for span in server.spans} == {"my run"}
    tmp_path = tmp_path / "my run"
    assert len(list(tmp_path.glob("runs/events.out.tfevents.*"))) > 1  # what is measured before the training has one
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["heldout_after"] > summary["heldout_before"]
    assert "held-out prompts" in result.stdout
    episodes = read_trajectories(tmp_path / "trajectories")
    assert len([one for one in episodes if one.step == 0]) >= 256
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "episode/success" in row]
    assert {"episode/turns", "episode/failed"} <= set(rows[0])


def test_demonstrated_turns_become_a_text_for_each_walk():
    turns = [("a1>c1:", "r"), ("a1>c1:rb1>c1:", "r"), ("d4>d1:", "l"), ("a1>a2:", "d"), ("a1>a2:da1>a2:", "u")]
    walks = whole_walks([{"prompt": prompt, "completion": letter} for prompt, letter in turns])
    assert walks["text"] == ["a1>c1:rb1>c1:r", "d4>d1:l", "a1>a2:da1>a2:u"]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("agent*.yaml")), ids=lambda path: path.name)
def test_every_config_of_the_recipe_parses(path, tmp_path):
    args = ["--config", str(path), "--use_cpu", "true", "--output_dir", str(tmp_path)]
    name = chosen_trainer(args, list(CONFIGS))
    agent_args, training_args, _ = parse_recipe_args(CONFIGS[name], path, "", args, AgentArguments)
    options = yaml.safe_load(path.read_text())
    assert (agent_args.trainer, agent_args.environment) == (options["trainer"], options["environment"])
    assert training_args.num_generations == options["num_generations"]


def test_the_trainer_is_that_of_the_command_line_or_of_its_config(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text("trainer: ppo\n")
    assert chosen_trainer([], ["cispo", "ppo"]) == "cispo"
    assert chosen_trainer(["--config", str(config)], ["cispo", "ppo"]) == "ppo"
    assert chosen_trainer(["--config", str(config), "--trainer", "cispo"], ["cispo", "ppo"]) == "cispo"
    with pytest.raises(ConfigError, match="trainer = 'dpo': must be one of cispo, ppo"):
        chosen_trainer(["--trainer", "dpo"], ["cispo", "ppo"])
    assert default_config(["--seed", "1"], "cispo") == default_config(["--env", "grid_world"], "grpo") == "agent.yaml"
    assert default_config([], "ppo") == "agent_ppo.yaml"
    assert default_config(["--env", "game_2048"], "ppo") == "agent_smollm2.yaml"


def test_an_option_may_be_spelt_in_each_way_that_the_parser_takes(tmp_path):
    """Or a run with --trainer=ppo would be one of CISPO that says it is of PPO."""
    assert words_of(["--trainer=ppo", "--env-options", '{"a": "b=c"}', '--reward={"x": "y=z"}', "-h", "--x="]) == [
        "--trainer", "ppo", "--env_options", '{"a": "b=c"}', "--reward", '{"x": "y=z"}', "-h", "--x", "",
    ]  # fmt: skip
    config = tmp_path / "x.yaml"
    config.write_text("trainer: ppo\n")
    assert chosen_trainer(["--trainer=ppo"], ["cispo", "ppo"]) == "ppo"
    assert chosen_trainer([f"--config={config}"], ["cispo", "ppo"]) == "ppo"
    assert default_config(["--env=game_2048"], "cispo") == "agent_smollm2.yaml"
    args = ["--model-name-or-path=x", "--output-dir", str(tmp_path), "--use_cpu=true"]
    _, training_args, model_args = parse_recipe_args(CISPOConfig, RECIPES / "agent.yaml", "", args, AgentArguments)
    assert (model_args.model_name_or_path, training_args.max_steps) == ("x", -1)  # not those of agent.yaml


@pytest.mark.parametrize(
    ("content", "message"), [("a: [1\n", "flow sequence"), ("- a\n", "YAML mapping"), (None, "No such file")]
)
def test_a_config_that_cannot_be_read_is_one_line(tmp_path, content, message):
    config = tmp_path / "x.yaml"
    if content:
        config.write_text(content)
    args = ["--config", str(config)]
    assert chosen_trainer(args, ["cispo", "ppo"]) == "cispo"
    with pytest.raises(ConfigError, match=message) as refused:
        parse_recipe_args(CISPOConfig, config, "", args, AgentArguments)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="--config: give a YAML file"):
        parse_recipe_args(CISPOConfig, config, "", args[:1], AgentArguments)


class Closing(Echo):
    closings = 0

    def close(self):
        Closing.closings += 1


def test_a_server_is_told_the_turns_of_the_environment_which_is_closed_again():
    name = f"{__name__}:Closing"
    assert _turns_of(AgentArguments(environment=name, env_options='{"max_turns": 3}')) == 3
    assert _turns_of(AgentArguments(environment=name, env_options='{"max_turns": null}')) == DEFAULT_TURNS
    assert Closing.closings == 2


def test_the_environments_of_a_run_are_closed_at_its_end(tiny, monkeypatch):
    monkeypatch.setattr(Closing, "closings", 0)
    arguments = AgentArguments(environment=f"{__name__}:Closing", max_turn_tokens=2)
    with agent_rollout(arguments, tiny, []) as rollout:
        trainer = make_trainer(CISPOTrainer, tiny, config(CISPOConfig), rollout_func=rollout)
        trainer.rollout_rows = [{"prompt": ""}] * 4
        trainer.rollout_func([""] * 4, trainer)
        assert Closing.closings == 0
    assert Closing.closings == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env", "grid_word"], "no environment 'grid_word'; close ones: grid_world"),
        (["--env_options", "{"], "env_options = '{': not JSON"),
        (["--env_options", '{"max_turns": 0}'], "max_turns = 0: must be at least 1"),
        (["--episodes", "0"], "episodes = 0: must be at least 1"),
        (["--heldout_episodes", "-1"], "heldout_episodes = -1: must be at least 0"),
        (["--output_dir", "/proc/none"], "/proc/none"),
        (["--dataset_name", "x.jsonl"], "this recipe plays the rows of --env"),
        (["--reward_funcs", "my.reward"], "this recipe has the environment's own reward"),
    ],
)
def test_what_the_recipe_cannot_do_is_refused(tmp_path, options, message):
    args = ["--config", str(RECIPES / "agent.yaml"), "--use_cpu", "true", "--output_dir", str(tmp_path), *options]
    agent_args, training_args, model_args = parse_recipe_args(
        CISPOConfig, RECIPES / "agent.yaml", "", args, AgentArguments
    )
    with pytest.raises(TrlExtError, match=message):
        load_agent_task(agent_args, model_args, training_args)
