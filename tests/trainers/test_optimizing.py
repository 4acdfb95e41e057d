import json

import pytest
import torch
import yaml
from trl import TrlParser

from tests.trainers.training import config, demonstrations, fixed_rollout, load, make_trainer, weights
from trl_ext import CISPOConfig, CISPOTrainer, HybridConfig, HybridTrainer, PPOConfig, PPOTrainer
from trl_ext.errors import CheckpointError, ConfigError, MissingExtraError
from trl_ext.optim import make_optimizers

CONFIGS = {CISPOTrainer: CISPOConfig, PPOTrainer: PPOConfig, HybridTrainer: HybridConfig}
STEPS = 6
OPTIMIZER = {"name": "adamw_8bit", "betas": [0.9, 0.95]}
SCHEDULER = {"name": "cosineannealing", "eta_min": 1e-4}


def made(trainer_class, tiny, **options):
    options = {"max_steps": STEPS, "optimizer": OPTIMIZER, "scheduler": SCHEDULER, "warmup_steps": 2, **options}
    options = {"lr_scheduler_type": "linear", **options}
    data = {"train_dataset": demonstrations()} if trainer_class is HybridTrainer else {}
    args = config(CONFIGS[trainer_class], **options)
    return make_trainer(trainer_class, tiny, args, rollout_func=fixed_rollout, **data)


def rates(trainer):
    return [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]


@pytest.mark.parametrize("config_class", CONFIGS.values())
def test_a_spec_comes_from_yaml_and_from_the_command_line_as_a_name_or_a_dict(tmp_path, config_class):
    file = tmp_path / "config.yaml"
    rest = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "num_generations": 2}
    file.write_text(yaml.safe_dump({**rest, "optimizer": OPTIMIZER, "scheduler": "cosine"}))
    parser = TrlParser((config_class,))
    (args,) = parser.parse_args_and_config(["--config", str(file)])
    assert (args.optimizer, args.scheduler) == (OPTIMIZER, "cosine")
    line = ["--optimizer", "lion", "--scheduler", json.dumps(SCHEDULER)]
    (args,) = parser.parse_args_and_config(["--config", str(file), *line])
    assert (args.optimizer, args.scheduler) == ("lion", SCHEDULER)


@pytest.mark.parametrize("trainer_class", CONFIGS)
def test_what_the_spec_does_not_say_is_in_the_arguments(tiny, trainer_class):
    trainer = made(trainer_class, tiny, weight_decay=0.1, learning_rate=1e-2)
    trainer.train()
    # two steps of warm-up from 0, then half a cosine of four steps down to eta_min
    cosine = [1e-4 + (1e-2 - 1e-4) * x for x in (1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4)]
    assert rates(trainer) == pytest.approx([0.0, 5e-3, *cosine])
    optimizer = trainer.optimizer.optimizer
    assert (type(optimizer).__module__, optimizer.args.optim_bits) == ("bitsandbytes.optim.adamw", 8)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1, 0.0}
    assert {tuple(group["betas"]) for group in optimizer.param_groups} == {(0.9, 0.95)}
    held = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    assert held == sum(parameter.numel() for parameter in trainer.model.parameters())


def test_a_spec_wins_over_the_arguments_whose_default_it_is(tiny):
    optimizer = {"name": "adagrad", "LR": 0.5, "weight_decay": 0.2}
    scheduler = {"name": "linear", "num_warmup_steps": 1, "num_training_steps": 100}
    trainer = made(CISPOTrainer, tiny, optimizer=optimizer, scheduler=scheduler, weight_decay=0.1)
    trainer.create_optimizer_and_scheduler(STEPS)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.2
    trainer.lr_scheduler.step()
    assert trainer.lr_scheduler.get_last_lr()[0] == 0.5
    trainer.lr_scheduler.step()
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.5 * 98 / 99)


@pytest.mark.parametrize("trainer_class", [PPOTrainer, HybridTrainer])
def test_the_value_function_keeps_a_learning_rate_of_its_own(tiny, trainer_class):
    trainer = made(trainer_class, tiny, value_learning_rate=0.3, scheduler="constant", vf_coef=1.0)
    trainer.train()
    own = {id(parameter) for parameter in trainer.value_function.parameters()}
    for group in trainer.optimizer.param_groups:
        inside = {id(parameter) for parameter in group["params"]} <= own
        assert group["lr"] == (0.3 if inside else 1e-2)
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups if group["lr"] == 0.3) == 2
    assert all(parameter.abs().sum() > 0 for parameter in trainer.value_function.parameters())


@pytest.mark.parametrize("trainer_class", CONFIGS)
def test_a_run_that_is_resumed_ends_as_an_unbroken_one(tiny, trainer_class):
    saving = {"save_strategy": "steps", "save_steps": 3, "value_learning_rate": 0.1}
    saving = {k: v for k, v in saving.items() if k != "value_learning_rate" or trainer_class is not CISPOTrainer}
    whole, resumed = made(trainer_class, tiny, **saving), made(trainer_class, tiny, **saving)
    whole.train()
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    assert rates(resumed) == rates(whole)
    assert (weights(resumed.model) - weights(whole.model)).abs().max() <= 1e-6
    assert (weights(resumed.model)[:1000] - weights(load(tiny))[:1000]).abs().max() > 1e-3


@pytest.mark.parametrize("scheduler", ["onecycle", "cosineannealing"])
def test_a_scheduler_that_would_keep_the_length_of_a_shorter_run_is_refused_when_that_is_resumed(tiny, scheduler):
    """torch's raises after its last step, or goes up again."""
    options = {"scheduler": scheduler, "warmup_steps": 1, "optimizer": "sgd"}
    short = made(CISPOTrainer, tiny, **options, max_steps=3, save_strategy="steps", save_steps=3)
    short.train()
    longer = made(CISPOTrainer, tiny, **options, max_steps=6)
    made_with = {"onecycle": "total_steps = 3, that of this run has 6", "cosineannealing": "T_max = 2, .* has 5"}
    with pytest.raises(CheckpointError, match=f"checkpoint-3: its scheduler was made with {made_with[scheduler]}"):
        longer.train(resume_from_checkpoint=f"{short.args.output_dir}/checkpoint-3")
    if scheduler == "cosineannealing":  # a length that the spec says is meant
        longer = made(CISPOTrainer, tiny, **{**options, "scheduler": {"name": scheduler, "T_max": 2}}, max_steps=6)
        longer.train(resume_from_checkpoint=f"{short.args.output_dir}/checkpoint-3")
        assert longer.state.global_step == 6


def test_a_scheduler_that_ends_before_the_run_is_refused(tiny):
    trainer = made(CISPOTrainer, tiny, scheduler={"name": "onecycle", "num_training_steps": 4})
    with pytest.raises(ConfigError, match=r"scheduler = .*'onecycle'.* ends after 4 steps, the run has 6"):
        trainer.train()


def test_a_second_run_has_a_schedule_of_its_own(tiny):
    trainer = made(CISPOTrainer, tiny, max_steps=2, scheduler="linear", warmup_steps=0)
    trainer.train()
    trainer.train()
    assert trainer.lr_scheduler.get_last_lr()[0] == 0
    assert trainer.lr_scheduler.last_epoch == 2


def test_an_object_beside_a_spec_is_refused(tiny):
    model = load(tiny)
    pair = make_optimizers(model, "adamw", "constant")
    for options, part in (({"scheduler": None}, "optimizer"), ({"optimizer": None}, "scheduler")):
        specs = {"optimizer": "sgd", "scheduler": "linear", **options}
        args = config(CISPOConfig, lr_scheduler_type="linear", **specs)
        with pytest.raises(ConfigError, match=rf"args.{part} = '\w+', and an object too: give one of them"):
            make_trainer(CISPOTrainer, tiny, args, model=model, optimizers=pair)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamv"}, "no optimizer 'adamv'; close ones: adam"),
        (
            {"optimizer": {"name": "sgd", "momentun": 0.9}},
            "optimizer 'sgd': no option 'momentun'; did you mean momentum",
        ),
        ({"optimizer": '{"name": "sgd", }'}, "optimizer: this is not JSON"),
        ({"optimizer": {"lr": 1.0}}, "must have one 'name'"),
        ({"optimizer": "sgd", "optim": "adafactor"}, "optimizer = 'sgd' and optim = 'adafactor' are about one thing"),
        (
            {"optimizer": "adamw", "adam_beta2": 0.95},
            r"put the beta2 into optimizer, and leave adam_beta2 as it is by default \(0.999\)",
        ),
        ({"optimizer": "adamw", "optim_args": "eps=1"}, "optim_args = 'eps=1' are about one thing: put the options"),
        ({"scheduler": "cosin"}, "no scheduler 'cosin'; close ones: cosine"),
        ({"scheduler": {"name": "step", "gamma": -1}}, "scheduler 'step': gamma = -1: must be a number greater than 0"),
        ({"scheduler": {"name": "linear", "warmup_steps": 9}}, "a warm-up of 9 steps must be shorter than the run, 6"),
        (
            {"scheduler": "linear", "lr_scheduler_type": "cosine"},
            "scheduler = 'linear' and lr_scheduler_type = 'cosine'",
        ),
        ({"scheduler": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}}, "put the options into scheduler"),
        ({"scheduler": "reduce_on_plateau"}, "is stepped at evaluations, .* set eval_strategy"),
        ({"scheduler": "greedy", "eval_strategy": "steps", "eval_steps": 1}, "set metric_for_best_model"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_config(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        config(PPOConfig, **{"max_steps": 6, "lr_scheduler_type": "linear", **options})
    assert "\n" not in str(error.value)


def test_a_package_that_is_missing_is_named_with_the_config(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match="needs bitsandbytes: pip install"):
        config(PPOConfig, optimizer="adamw_8bit")


def test_the_same_name_twice_is_no_contradiction():
    assert config(CISPOConfig, optimizer="sgd", optim="sgd", scheduler="cosine", lr_scheduler_type="cosine")
    assert config(CISPOConfig, lr_scheduler_type="linear", scheduler={"name": "onecycle", "cycle_momentum": True})


def test_low_rank_optimizers_find_their_modules_in_the_model(tiny):
    pytest.importorskip("galore_torch")
    trainer = made(CISPOTrainer, tiny, optimizer={"name": "galore_adamw", "target_modules": ["attn"], "rank": 4})
    optimizer = trainer.create_optimizer()
    assert any(group.get("rank") == 4 for group in optimizer.param_groups)
    assert torch.isfinite(weights(trainer.model)).all()
