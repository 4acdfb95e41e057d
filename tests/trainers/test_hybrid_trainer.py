import json

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from tests.launching import on_two_processes
from tests.trainers import training
from tests.trainers.training import CPU, demonstrations, load, make_trainer, ragged_rollout, trained, weights
from trl_ext import HybridConfig, HybridTrainer, PPOConfig, PPOTrainer
from trl_ext.errors import ConfigError, DatasetError
from trl_ext.trainers.value_function import NAME

DATA = demonstrations()


def config(config_class=HybridConfig, **options):
    defaults = {"num_generations": 1, "num_ppo_epochs": 2, "kl_coef": 0.0, "max_steps": 8}
    if config_class is HybridConfig:
        defaults["sft_steps"] = 2
    return training.config(config_class, **{**defaults, **options})


def hybrid(path, args, trainer_class=HybridTrainer, **options):
    return make_trainer(trainer_class, path, args, **{"train_dataset": DATA, **options})


def policy_weights(trainer):
    return torch.cat(
        [p.detach().flatten() for name, p in trainer.model.named_parameters() if not name.startswith(NAME)]
    )


def phases(trainer):
    return ["rl" if row["phase/rl"] else "sft" for row in trainer.state.log_history if "phase/rl" in row]


class Snapshot(TrainerCallback):
    """The policy's weights after some step."""

    def __init__(self, step):
        self.step, self.trainer, self.weights = step, None, None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.weights = policy_weights(self.trainer).clone()


@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (4, 2), (2, 4)])
def test_a_step_on_demonstrations_is_trls_sft_trainers(tiny, tmp_path, size, accumulation):
    """Ragged completions, all of the data in each step: the loss is a mean over the tokens of the whole window."""
    data = DATA.select(range(8))
    batch = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    snapshot = Snapshot(3)
    plain = {"optim": "sgd", "learning_rate": 0.5}  # Adam would make much of the float32 in TRL's own loss
    args = config(mode="sequential", sft_steps=3, max_steps=5, num_ppo_epochs=1, **batch, **plain)
    ours = hybrid(tiny, args, train_dataset=data, model=load(tiny, torch.float64), callbacks=[snapshot])
    snapshot.trainer = ours
    ours.train()
    options = {**CPU, **batch, **plain, "max_steps": 3, "lr_scheduler_type": "constant"}
    theirs = SFTTrainer(load(tiny, torch.float64), SFTConfig(str(tmp_path), **options), train_dataset=data)
    theirs.train()
    assert phases(ours) == ["sft"] * 3 + ["rl"] * 2
    assert (snapshot.weights - weights(load(tiny))).abs().max() > 1e-3
    assert (snapshot.weights - weights(theirs.model)).abs().max() <= 1e-6
    if accumulation == 1:  # TRL's accuracy is a mean over micro-batches
        first = theirs.state.log_history[0]
        assert ours.state.log_history[0]["sft/token_accuracy"] == pytest.approx(first["mean_token_accuracy"])
        assert ours.state.log_history[0]["sft/loss"] == pytest.approx(first["loss"], rel=1e-5)


def test_steps_on_rewards_are_the_ppo_trainers(tiny):
    """With no weight on the demonstrations, every step is PPO's."""
    args = config(mode="joint", mu_start=0.0, mu_end=0.0)
    ours, theirs = (
        trained(c, tiny, a, model=load(tiny, torch.float64), train_dataset=DATA, rollout_func=ragged_rollout)
        for c, a in ((HybridTrainer, args), (PPOTrainer, config(PPOConfig)))
    )
    assert (weights(ours.model) - weights(theirs.model)).abs().max() <= 1e-6


def test_sequential_is_one_trainer_after_the_other(tiny, tmp_path):
    """Without momentum, so that the optimizer brings nothing from the first part into the second."""
    data = DATA.select(range(8))
    plain = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant"}
    both = trained(
        HybridTrainer,
        tiny,
        config(mode="sequential", sft_steps=3, max_steps=7, **plain),
        train_dataset=data,
        model=load(tiny, torch.float64),
        rollout_func=ragged_rollout,
    )
    options = {**CPU, **plain, "per_device_train_batch_size": 8, "max_steps": 3}
    first = SFTTrainer(load(tiny, torch.float64), SFTConfig(str(tmp_path), **options), train_dataset=data)
    first.train()
    second = trained(
        PPOTrainer,
        tiny,
        config(PPOConfig, max_steps=4, **plain),
        train_dataset=data,
        model=first.model,
        rollout_func=ragged_rollout,
    )
    assert (policy_weights(both) - policy_weights(second)).abs().max() <= 1e-6
    assert (policy_weights(both) - weights(load(tiny))).abs().max() > 1e-3


def test_joint_is_the_weighted_sum_of_both_losses(tiny):
    parts = []

    class Watched(HybridTrainer):
        def _sft_loss(self, *args):
            parts.append(super()._sft_loss(*args))
            return parts[-1]

        def _compute_loss(self, model, inputs):
            total = super()._compute_loss(model, inputs)
            mu = self.args.mu(self.state.global_step / (self.state.max_steps - 1))
            rl = PPOTrainer._compute_loss(self, model, inputs)
            torch.testing.assert_close(total, (1 - mu) * rl + mu * parts[-1])
            return total

    trainer = trained(Watched, tiny, config(mode="joint", mu_start=0.7, mu_end=0.2), train_dataset=DATA)
    assert len(parts) == 8
    mus = [row["sft/mu"] for row in trainer.state.log_history if "sft/mu" in row]
    assert (mus[0], mus[-1]) == pytest.approx((0.7, 0.2))


def test_token_weighting_is_chords(tiny):
    trainer = hybrid(tiny, config(sft_token_weighting=True))
    rows = trainer._collate(trainer._demonstrations[:4])
    loss = trainer._sft_loss(trainer.model, rows, torch.tensor(10.0))
    ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1)
    attention = torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1)
    logps = trainer.model(input_ids=ids, attention_mask=attention).logits.log_softmax(-1)
    start, total = rows["prompt_ids"].size(1), 0.0
    for i, t in rows["completion_mask"].nonzero().tolist():
        p = logps[i, start + t - 1, rows["completion_ids"][i, t]].exp()
        total -= (p * (1 - p)).detach() * p.log()
    assert loss.item() == pytest.approx((total / 10).item(), rel=1e-5)


def test_steps_on_demonstrations_take_no_prompt_and_generate_nothing(tiny):
    seen = {"hybrid": [], "ppo": []}

    def watch(name):
        def rollout(prompts, trainer):
            seen[name].append((trainer.state.global_step, list(prompts)))
            return ragged_rollout(prompts, trainer)

        return rollout

    trainer = trained(
        HybridTrainer, tiny, config(sft_steps=3, max_steps=15), train_dataset=DATA, rollout_func=watch("hybrid")
    )
    trained(PPOTrainer, tiny, config(PPOConfig, max_steps=6), train_dataset=DATA, rollout_func=watch("ppo"))
    assert phases(trainer) == (["sft"] * 3 + ["rl"] * 2) * 3
    assert [step for step, _ in seen["hybrid"]] == [3, 8, 13]
    assert [prompts for _, prompts in seen["hybrid"]] == [prompts for _, prompts in seen["ppo"]]


def test_every_prompt_is_visited_once_before_any_is_seen_again(tiny):
    """Also where an epoch of the trainer, which counts both kinds of steps, ends in between."""
    seen = []

    def rollout(prompts, trainer):
        seen.extend(prompts)
        return ragged_rollout(prompts, trainer)

    data = DATA.select(range(40))
    trained(HybridTrainer, tiny, config(sft_steps=3, max_steps=55), train_dataset=data, rollout_func=rollout)
    for start in range(0, len(seen) - 39, 40):
        assert sorted(seen[start : start + 40]) == sorted(data["prompt"])
    assert len(seen) > 80


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "alternate", "sft_steps": 3},
        {"mode": "curriculum", "rl_share_start": 0.2},
        {"mode": "joint"},
        {"mode": "gate", "num_generations": 2, "gate": 0.5},
        {"mode": "buffer", "num_generations": 2, "buffer_size": 6},
        {"mode": "alternate", "rl_loss": "cispo", "num_generations": 2},
    ],
    ids=lambda options: f"{options['mode']}-{options.get('rl_loss', 'ppo')}",
)
@pytest.mark.parametrize("stop", [4, 7])
def test_resume_in_the_middle_of_a_cycle_ends_where_an_unbroken_run_ends(tiny, options, stop):
    options = {**options, "max_steps": 12, "lr_scheduler_type": "linear"}
    saving = {"save_strategy": "steps", "save_steps": stop}
    whole = trained(HybridTrainer, tiny, config(**options, **saving), train_dataset=DATA, reward_funcs=training.parity)
    resumed = hybrid(tiny, config(**options), reward_funcs=training.parity)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{stop}")
    assert phases(resumed) == phases(whole)
    assert (weights(resumed.model) - weights(whole.model)).abs().max() <= 1e-6


@pytest.mark.parametrize(
    "options",
    [{"mode": "alternate"}, {"mode": "gate", "gate": 0.5}, {"mode": "buffer", "buffer_size": 8}, {"mode": "joint"}],
    ids=lambda options: options["mode"],
)
def test_two_processes_train_as_one(tiny, tmp_path, options):
    """The demonstrations fill the global batch, so that their order does not matter."""
    job = {
        "trainer": "Hybrid",
        "path": tiny,
        "weights": str(tmp_path / "weights.pt"),
        "demonstrations": 12,
        "options": {"num_ppo_epochs": 2, "max_steps": 6, "num_generations": 2, "kl_coef": 0.0, **options},
    }
    on_two_processes("tests.trainers.train_on_processes", json.dumps(job))
    args = training.config(HybridConfig, per_device_train_batch_size=12, shuffle_dataset=False, **job["options"])
    single = trained(
        HybridTrainer,
        tiny,
        args,
        model=load(tiny, torch.float64),
        rollout_func=ragged_rollout,
        train_dataset=demonstrations(12),
        reward_funcs=training.parity,
    )
    assert (torch.load(job["weights"]) - weights(single.model)).abs().max() <= 1e-6


def test_the_loss_that_is_logged_is_that_of_the_whole_step(tiny):
    args = config(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for row in trained(HybridTrainer, tiny, args, train_dataset=DATA).state.log_history[:-1]:
        assert row["loss"] == pytest.approx(row.get("rl/loss", row.get("sft/loss")), rel=1e-3, abs=1e-6)


def test_the_gate_leaves_unsolved_prompts_to_their_demonstrations(tiny):
    outputs, losses = [], []

    class Watched(HybridTrainer):
        def _generate_and_score_completions(self, inputs):
            outputs.append((inputs, super()._generate_and_score_completions(inputs)))
            return outputs[-1][1]

        def _sft_loss(self, model, rows, tokens):
            losses.append((rows, tokens, super()._sft_loss(model, rows, tokens)))
            return losses[-1][2]

    def first_half(prompts, **columns):
        return [float(i < 4) for i in range(len(prompts))]

    args = config(mode="gate", num_generations=2, num_ppo_epochs=1, max_steps=2, gate=0.4)
    trained(Watched, tiny, args, train_dataset=DATA, reward_funcs=first_half)
    inputs, output = outputs[0]
    assert (output["advantages"][:4] != 0).any()
    assert (output["advantages"][4:] == 0).all()
    assert (output["value_mask"][4:] == 0).all()
    assert output["demonstration_completion_mask"].any(1).tolist() == [False] * 4 + [True, False, True, False]
    expected = len(inputs[4]["completion"]) + len(inputs[6]["completion"]) + 2  # and their end-of-sequence tokens
    assert int(output["num_demonstration_tokens"]) == int(losses[0][1]) == expected
    assert losses[0][2] > 0


def test_the_buffer_trains_on_the_oldest_hard_prompts_when_it_is_full(tiny):
    batches = []

    class Watched(HybridTrainer):
        def _collate(self, rows):
            batches.append(rows)
            return super()._collate(rows)

    def never(completions, **columns):
        return [0.0] * len(completions)

    args = config(mode="buffer", num_generations=2, num_ppo_epochs=1, max_steps=7, buffer_size=8)
    trainer = trained(Watched, tiny, args, train_dataset=DATA, reward_funcs=never)
    assert phases(trainer) == ["rl", "rl", "sft", "rl", "rl", "sft", "rl"]  # 4 hard prompts in each batch of 8
    assert [len(rows) for rows in batches] == [8, 8]
    assert len(trainer._buffer) == 4


def test_temperature_and_chat_and_a_dataset_of_its_own_work(tiny):
    chat = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"{i}+1="}], "completion": str(i + 1)} for i in range(16)]
    )
    trainer = hybrid(tiny, config(temperature=0.5, max_steps=4), train_dataset=training.PROMPTS, sft_dataset=DATA)
    trainer.train()
    assert phases(trainer) == ["sft", "sft", "rl", "rl"]
    tokenizer = trainer.processing_class
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"

    def right(completions, **columns):
        return [float(completion[0]["content"].isdigit()) for completion in completions]

    other = hybrid(tiny, config(max_steps=4), train_dataset=chat, processing_class=tokenizer, reward_funcs=right)
    other.train()
    assert all(torch.isfinite(p).all() for p in other.model.parameters())


def test_what_cannot_train_is_refused(tiny):
    with pytest.raises(DatasetError, match="train_dataset has no column 'completion'"):
        hybrid(tiny, config(), train_dataset=training.PROMPTS)
    with pytest.raises(DatasetError, match="train_dataset has no column 'completion'"):
        hybrid(tiny, config(mode="gate"), train_dataset=training.PROMPTS, sft_dataset=DATA)
    with pytest.raises(DatasetError, match="sft_dataset has no rows"):
        hybrid(tiny, config(), sft_dataset=DATA.select([]))
    nameless = DATA.map(lambda row, i: {"prompt": row["prompt"] if i else None}, with_indices=True)
    with pytest.raises(DatasetError, match="sft_dataset: 1 of 80 rows have no prompt"):
        hybrid(tiny, config(), sft_dataset=nameless)
    # how many steps an epoch is, is known when it begins
    epoch = hybrid(tiny, config(mode="sequential", sft_steps=1000, max_steps=-1, num_train_epochs=1))
    with pytest.raises(ConfigError, match="mode = 'sequential': none of the 20 steps trains on rewards; raise max_s"):
        epoch.train()
    with pytest.raises(ConfigError, match="args is a PPOConfig: HybridTrainer takes a HybridConfig"):
        hybrid(tiny, config(PPOConfig))
    ppo = trained(PPOTrainer, tiny, config(PPOConfig, max_steps=2, save_strategy="steps", save_steps=2))
    with pytest.raises(ConfigError, match="this checkpoint is not one of HybridTrainer's"):
        hybrid(tiny, config()).train(resume_from_checkpoint=f"{ppo.args.output_dir}/checkpoint-2")
