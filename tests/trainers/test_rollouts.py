from pathlib import Path

import pytest
import torch

from tests.trainers.training import PROMPTS, config, fixed_rollout, load, make_trainer, trained, weights
from trl_ext import CISPOConfig, CISPOTrainer, PPOConfig, PPOTrainer
from trl_ext.errors import DatasetError
from trl_ext.trainers.checkpoints import SEAL

TRAINERS = {"CISPO": (CISPOTrainer, CISPOConfig), "PPO": (PPOTrainer, PPOConfig)}


@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_resumed_between_two_generations_ends_where_an_unbroken_one_ends(tiny, tmp_path, name):
    """Completions are sampled from the model: the random state, and those in use, must come back."""
    trainer_class, config_class = TRAINERS[name]
    options = {"num_iterations": 3, "steps_per_generation": 2, "max_steps": 10, "num_generations": 2}

    def run(**more):
        return make_trainer(trainer_class, tiny, config(config_class, **options, **more))

    whole = run(save_strategy="steps", save_steps=4)
    whole.train()
    checkpoint = f"{whole.args.output_dir}/checkpoint-4"
    resumed = run()
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.state.global_step == 10
    assert (weights(whole.model)[: len(weights(load(tiny)))] - weights(load(tiny))).abs().max() > 1e-3
    assert (weights(resumed.model) - weights(whole.model)).abs().max() <= 1e-6


@pytest.mark.parametrize("step", [4, 6], ids=["between two epochs", "in the second epoch"])
@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_resumed_after_its_first_epoch_goes_on_in_the_order_of_the_next(tiny, name, step):
    """TRL shuffles by a generator that begins anew in a resumed run. An epoch of 16 prompts is 4 steps here."""
    trainer_class, config_class = TRAINERS[name]
    options = {"num_iterations": 1, "max_steps": 10, "num_generations": 2, "save_strategy": "steps", "save_steps": 2}
    prompts = PROMPTS.select(range(16))
    whole = make_trainer(trainer_class, tiny, config(config_class, **options), train_dataset=prompts)
    whole.train()
    assert whole.state.epoch == 2.5
    resumed = make_trainer(trainer_class, tiny, config(config_class, **options), train_dataset=prompts)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
    assert (weights(resumed.model) - weights(whole.model)).abs().max() <= 1e-6


def test_the_completions_in_use_are_what_makes_a_resume_exact(tiny):
    """Without them, which is TRL as it is, the same resume ends elsewhere."""
    options = {"num_iterations": 3, "steps_per_generation": 2, "max_steps": 10}
    whole = make_trainer(CISPOTrainer, tiny, config(CISPOConfig, **options, save_strategy="steps", save_steps=4))
    whole.train()
    checkpoint = f"{whole.args.output_dir}/checkpoint-4"
    torch.save({}, f"{checkpoint}/rollouts_0.pt")
    Path(checkpoint, SEAL).unlink()
    resumed = make_trainer(CISPOTrainer, tiny, config(CISPOConfig, **options))
    resumed.train(resume_from_checkpoint=checkpoint)
    assert (weights(resumed.model) - weights(whole.model)).abs().max() > 1e-5


@pytest.mark.parametrize(("name", "metric"), [("CISPO", "importance_weight/mean"), ("PPO", "val/ratio")])
def test_a_micro_batch_in_which_no_token_counts_takes_no_part_in_a_mean_over_tokens(tiny, name, metric):
    """Most micro-batches of the step have truncated completions only, which are masked; the ratio is 1."""
    trainer_class, config_class = TRAINERS[name]
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "steps_per_generation": 8}
    options |= {"num_iterations": 1, "num_generations": 2, "mask_truncated_completions": True, "max_steps": 1}

    def mostly_truncated(prompts, trainer):
        output = fixed_rollout(prompts, trainer)
        output["completion_ids"] = [
            ids if row < 2 else [5] * len(ids) for row, ids in enumerate(output["completion_ids"])
        ]
        return output

    trainer = make_trainer(trainer_class, tiny, config(config_class, **options), rollout_func=mostly_truncated)
    trainer.train()
    assert trainer.state.log_history[0][metric] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("step", [1, 3], ids=["in the first pass", "in the second pass"])
def test_a_second_pass_over_an_iterable_dataset_is_not_gone_on_with_and_that_is_said(tiny, step, caplog):
    """A pass is 2 steps here."""
    options = {"max_steps": 4, "num_iterations": 1, "save_strategy": "steps", "save_steps": 1}
    prompts = PROMPTS.select(range(4)).to_iterable_dataset()
    whole = make_trainer(CISPOTrainer, tiny, config(CISPOConfig, **options), train_dataset=prompts)
    whole.train()
    resumed = make_trainer(CISPOTrainer, tiny, config(CISPOConfig, **options), train_dataset=prompts)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
    assert resumed.state.global_step == 4
    assert ("of pass 2 over an IterableDataset" in caplog.text) == (step == 3)
    if step == 1:
        assert (weights(resumed.model) - weights(whole.model)).abs().max() <= 1e-6


@pytest.mark.parametrize("options", [{"steps_per_generation": 4}, {"num_iterations": 2}, {"beta": 0.1}], ids=str)
@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_resumed_with_options_that_the_completions_in_use_do_not_fit_samples_new_ones(
    tiny, name, options, caplog
):
    """Its first step is on a new batch; the checkpoint lies in the middle of an old one."""
    trainer_class, config_class = TRAINERS[name]
    before = {"num_iterations": 3, "steps_per_generation": 2, "max_steps": 4}
    whole = make_trainer(trainer_class, tiny, config(config_class, **before, save_strategy="steps", save_steps=4))
    whole.train()
    more = {"kl_coef": 0.0} if name == "PPO" else {}
    resumed = make_trainer(trainer_class, tiny, config(config_class, **{**before, **more, "max_steps": 6, **options}))
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    (first, second) = (row for row in resumed.state.log_history if row["step"] > 4 and "loss" in row)
    assert "reward" in first
    assert "reward" not in second
    assert "was made with other options (of per_device_train_batch_size, steps_per_generation," in caplog.text


def test_a_prompt_that_leaves_no_room_for_a_completion_is_refused(tiny):
    context = load(tiny).config.max_position_embeddings
    args = config(CISPOConfig, max_completion_length=context - 3)
    with pytest.raises(DatasetError, match=rf"a prompt has 4 tokens, which with max_completion_length = {context - 3}"):
        trained(CISPOTrainer, tiny, args)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_completion_without_tokens_does_not_count(tiny, name):
    """It has no gradient, and the others train as they do beside one whose tokens are all the environment's."""
    trainer_class, config_class = TRAINERS[name]

    def with_an_empty_one(prompts, trainer):
        output = fixed_rollout(prompts, trainer)
        output["completion_ids"][1], output["logprobs"][1] = [], []
        return output

    def with_one_of_the_environment(prompts, trainer):
        output = fixed_rollout(prompts, trainer)
        output["env_mask"] = [[1] * len(ids) for ids in output["completion_ids"]]
        output["completion_ids"][1], output["logprobs"][1], output["env_mask"][1] = [7], [0.0], [0]
        return output

    def reward(completions, **columns):
        return [float(i % 3) for i in range(len(completions))]

    ends = [
        weights(
            trained(trainer_class, tiny, config(config_class, max_steps=3), rollout_func=f, reward_funcs=reward).model
        )
        for f in (with_an_empty_one, with_one_of_the_environment)
    ]
    assert ends[0].isfinite().all()
    assert (ends[0] - ends[1]).abs().max() <= 1e-6


@pytest.mark.parametrize("name", TRAINERS)
def test_a_dataset_smaller_than_one_generation_batch_is_refused(tiny, name):
    trainer_class, config_class = TRAINERS[name]
    args = config(config_class, per_device_train_batch_size=40, num_generations=2)
    with pytest.raises(DatasetError, match="train_dataset has 12 prompts, one generation batch takes 20"):
        make_trainer(trainer_class, tiny, args, train_dataset=PROMPTS.select(range(12)))
