import contextlib
import errno

import pytest
import torch
from peft.utils.error import NoMatchingPeftModuleError
from trl import GRPOConfig

from tests.trainers.training import CPU
from trl_ext import CISPOConfig
from trl_ext.errors import CheckpointError, ConfigError
from trl_ext.recipe import one_line_errors, parse_recipe_args
from trl_ext.trainers.checkpoints import begin, write_seal

BASE = ["--use_cpu", "true", "--bf16", "false", "--output_dir", "out"]


@pytest.fixture
def default(tmp_path):
    path = tmp_path / "default.yaml"
    path.write_text(
        "model_name_or_path: builtin:tiny\ndataset_name: builtin:arithmetic\nlearning_rate: 0.5\n"
        "use_cpu: true\nbf16: false\ntask_options: {size: 3}\n"
    )
    return path


def parse(default, *args):
    return parse_recipe_args(CISPOConfig, default, "what it does", args)


def test_without_arguments_the_recipes_own_config_is_used_and_options_override_it(default):
    recipe_args, training_args, model_args = parse(default, "--max_steps", "7")
    assert (model_args.model_name_or_path, recipe_args.dataset_name) == ("builtin:tiny", "builtin:arithmetic")
    assert (training_args.learning_rate, training_args.max_steps) == (0.5, 7)
    assert recipe_args.task_options == {"size": 3}
    assert training_args.importance_weight_max == 5.0


def test_a_named_model_gets_the_trainers_defaults_not_the_tiny_models(default):
    args = [*BASE, "--model_name_or_path", "org/model", "--dataset_name", "x.jsonl", "--dtype", "bfloat16"]
    _, training_args, _ = parse(default, *args)
    assert training_args.learning_rate == CISPOConfig(output_dir="out", **CPU).learning_rate
    assert training_args.model_init_kwargs["dtype"] == "bfloat16"


@pytest.mark.parametrize("word", ["true", "True", "latest", "auto"])
def test_resume_takes_the_newest_complete_checkpoint_and_auto_takes_none_too(default, tmp_path, capsys, word):
    args = ["--output_dir", str(tmp_path), "--resume_from_checkpoint"]
    if word == "auto":
        assert parse(default, *args, word)[1].resume_from_checkpoint is None
        assert capsys.readouterr().out == "No checkpoint to resume from: a new run\n"
    else:
        with pytest.raises(CheckpointError, match="no complete checkpoint in"):
            parse(default, *args, word)
    for step in (5, 10):
        begin(tmp_path / f"checkpoint-{step}")
    write_seal(tmp_path / "checkpoint-5", {})
    assert parse(default, *args, word)[1].resume_from_checkpoint == f"{tmp_path}/checkpoint-5"
    assert capsys.readouterr().out == f"Resuming from {tmp_path}/checkpoint-5\n"
    with pytest.raises(CheckpointError, match="checkpoint-10' cannot be resumed from: the run ended while writing it"):
        parse(default, *args, f"{tmp_path}/checkpoint-10")


def test_a_preempted_recipe_saves_unless_it_is_told_not_to_or_is_plain_trl(default):
    assert parse(default)[1].enable_jit_checkpoint
    assert not parse(default, "--enable_jit_checkpoint", "false")[1].enable_jit_checkpoint
    assert not parse_recipe_args(GRPOConfig, default, "", [])[1].enable_jit_checkpoint


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lerning_rate", "1"], r"--lerning_rate: did you mean --learning_rate"),
        (["--config", "missing.yaml"], r"No such file or directory: 'missing.yaml'"),
        ([*BASE, "--model_name_or_path", "x"], r"no dataset: give --dataset_name"),
        (["--importance_weight_min", "9"], r"importance_weight_min = 9.0: must be at most"),
        (["--learning_rate", "-1"], r"learning_rate = -1.0: must be at least 0"),
        (["--per_device_train_batch_size", "0"], r"per_device_train_batch_size = 0: must be at least 1"),
        (["--report_to", "wanbd"], r"report_to: no 'wanbd'; close ones: wandb"),
        (["--num_generations", "7"], r"must be divisible by num_generations"),
    ],
)
def test_bad_arguments_are_one_line(default, args, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse(default, *args)
    assert "\n" not in str(error.value)


def test_bfloat16_without_a_gpu_is_refused_with_the_option_that_helps(default, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    args = ["--output_dir", "out", "--model_name_or_path", "x", "--dataset_name", "y.jsonl"]
    with pytest.raises(ConfigError, match=r"no GPU here that has it: give --bf16 false$"):
        parse(default, *args)


def test_bad_config_files_are_one_line(default, tmp_path):
    path = tmp_path / "bad.yaml"
    for text, message in {
        "lerning_rate: 1": r"--lerning_rate: did you mean --learning_rate",
        "a: [": "while parsing",
        "- a": "must contain a YAML mapping",
        "learning_rate: 1": "no model: give --model_name_or_path",
    }.items():
        path.write_text(f"{text}\n" + ("use_cpu: true\nbf16: false\n" if ": 1" in text else ""))
        with pytest.raises(ConfigError, match=message) as error:
            parse(default, "--config", str(path))
        assert "\n" not in str(error.value)


def test_help_teaches_the_command_and_the_options(default, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(default, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert text.startswith("usage: accelerate launch recipes/")
    assert len(text.splitlines()[0]) < 120  # argparse's own usage would be two hundred lines
    assert all(word in text for word in ("what it does", "--importance_weight_max", "--dataset_name", "--lora_r"))


def test_our_errors_end_a_program_with_one_line_and_others_keep_their_traceback():
    with pytest.raises(SystemExit, match=r"^error: no good$"), one_line_errors():
        raise ConfigError("no good")
    full = OSError(errno.ENOSPC, "No space left on device", "out/metrics.jsonl")
    message = r"^error: out/metrics\.jsonl cannot be written: No space left on device$"
    with pytest.raises(SystemExit, match=message), one_line_errors():
        raise full
    with pytest.raises(SystemExit, match=r"^error: lora_target_modules: none found\. .*all-linear"), one_line_errors():
        raise NoMatchingPeftModuleError("none\nfound.")
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("other")
    with pytest.raises(FileNotFoundError), one_line_errors():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")


@pytest.mark.parametrize(
    ("stop", "leaves"), [(None, True), (SystemExit(0), True), (SystemExit("error: no good"), False)]
)
def test_a_program_that_ends_as_it_should_leaves_its_process_group(monkeypatch, stop, leaves):
    left = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: left.append(True))
    with contextlib.suppress(SystemExit), one_line_errors():
        if stop is not None:
            raise stop
    assert bool(left) == leaves
