import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from tests.trainers.training import CPU, PROMPTS, config, fixed_rollout, load, make_trainer, weights
from trl_ext import CISPOConfig, CISPOTrainer, PPOConfig, PPOTrainer
from trl_ext.optim import make_optimizers

STEPS = 6
OPTIMIZER = {"name": "adamw_8bit", "lr": 1e-2}
SCHEDULER = {"name": "cosineannealing", "warmup_steps": 2}
RATES = [0.0, 5e-3, 1e-2, 1e-2 * (2 + 2**0.5) / 4, 5e-3, 1e-2 * (2 - 2**0.5) / 4]


def rates(trainer):
    return [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]


def own(model):
    return make_optimizers(model, OPTIMIZER, SCHEDULER, num_training_steps=STEPS)


@pytest.mark.parametrize(
    ("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (CISPOTrainer, CISPOConfig)], ids=["GRPO", "CISPO"]
)
def test_the_rl_trainers_take_them(tiny, trainer_class, config_class):
    model = load(tiny)
    before = weights(model)
    args = config(config_class, max_steps=STEPS)
    trainer = make_trainer(trainer_class, tiny, args, model=model, optimizers=own(model), rollout_func=fixed_rollout)
    trainer.train()
    assert rates(trainer) == pytest.approx(RATES)
    assert "bitsandbytes" in str(type(trainer.optimizer.optimizer))
    assert not torch.equal(weights(model), before)


def test_ppo_takes_them_once_its_value_head_is_there(tiny):
    args = config(PPOConfig, max_steps=STEPS, vf_coef=1.0)
    trainer = make_trainer(PPOTrainer, tiny, args, rollout_func=fixed_rollout)
    trainer.optimizer, trainer.lr_scheduler = own(trainer.model)
    head = [parameter.detach().clone() for parameter in trainer.value_function.parameters()]
    trainer.train()
    assert rates(trainer) == pytest.approx(RATES)
    assert not torch.equal(head[0], next(trainer.value_function.parameters()))


def test_sft_takes_them(tiny, tmp_path):
    model = load(tiny)
    rows = Dataset.from_list([{"prompt": f"{a}+1=", "completion": str(a + 1)} for a in range(8)])
    args = SFTConfig(output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=4, **CPU)
    tokenizer = make_trainer(GRPOTrainer, tiny, config(GRPOConfig)).processing_class
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer, optimizers=own(model))
    trainer.train()
    assert rates(trainer) == pytest.approx(RATES)


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        (OPTIMIZER, SCHEDULER),
        ({"name": "ademamix", "lr": 1e-2}, {"name": "onecycle", "warmup_steps": 2}),
        ({"name": "adamw", "lr": 1e-2}, {"name": "cyclic", "step_size_up": 2, "warmup_ratio": 0.3}),
        ({"name": "schedule_free_adamw", "lr": 1e-2}, "warmup_stable_decay"),
    ],
    ids=["8bit-cosineannealing", "ademamix-onecycle", "adamw-cyclic", "schedule_free-wsd"],
)
def test_a_run_that_is_resumed_ends_as_an_unbroken_one(tiny, optimizer, scheduler):
    def made():
        model = load(tiny)
        args = config(CISPOConfig, max_steps=STEPS, save_strategy="steps", save_steps=3, save_only_model=False)
        pair = make_optimizers(model, optimizer, scheduler, num_training_steps=STEPS)
        return make_trainer(CISPOTrainer, tiny, args, model=model, optimizers=pair, rollout_func=fixed_rollout)

    whole, resumed = made(), made()
    whole.train()
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    assert resumed.state.global_step == STEPS
    assert rates(resumed) == rates(whole)
    assert (weights(resumed.model) - weights(whole.model)).abs().max() <= 1e-6
    assert (weights(resumed.model) - weights(load(tiny))).abs().max() > 1e-3


def test_reduce_on_plateau_is_stepped_at_evaluations(tiny):
    model = load(tiny)
    args = config(CISPOConfig, max_steps=4, eval_strategy="steps", eval_steps=1, metric_for_best_model="reward")
    scheduler = {
        "name": "reduce_on_plateau",
        "mode": "max",
        "patience": 0,
        "factor": 0.5,
        "threshold": 1e9,
        "threshold_mode": "abs",
    }
    pair = make_optimizers(model, {"name": "adamw", "lr": 1e-2}, scheduler)
    data = {"rollout_func": fixed_rollout, "eval_dataset": PROMPTS.select(range(8))}
    make_trainer(CISPOTrainer, tiny, args, model=model, optimizers=pair, **data).train()
    assert pair[0].param_groups[0]["lr"] == pytest.approx(1e-2 / 2**3)  # the first evaluation is the best so far
