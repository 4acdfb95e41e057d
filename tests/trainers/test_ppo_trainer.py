import json
import math
import os
import warnings

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from tests.launching import on_two_processes
from tests.trainers import training
from tests.trainers.training import fixed_rollout, letters, load, make_trainer, trained, weights
from trl_ext import CISPOConfig, PPOConfig, PPOTrainer, make_reward_funcs
from trl_ext.errors import ConfigError
from trl_ext.losses import masked_whiten
from trl_ext.trainers.value_function import NAME


def config(config_class, **options):
    return training.config(config_class, **{"num_generations": 1, **options})


def policy_weights(trainer):
    """Those of the policy alone, as they are saved."""
    return torch.cat(
        [p.detach().flatten() for name, p in trainer.model.named_parameters() if not name.startswith(NAME)]
    )


def value_weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.value_function.parameters()])


def updates(trainer):
    """What was logged for each optimizer step."""
    return [row for row in trainer.state.log_history if "loss/value_avg" in row]


class Recording(PPOTrainer):
    """Keeps the rollouts, and the inputs, the loss and the gradients of every micro-batch."""

    def __init__(self, *args, **kwargs):
        self.rollouts, self.batches, self.gradients = [], [], []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.rollouts.append(output)
        return output

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.batches.append(inputs)
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
        self.gradients.append({n: g for (n, _), g in zip(named, gradients, strict=True) if g is not None})
        return loss


def forward(model, inputs):
    """Log-probabilities and values of the completion tokens, (B, T), by the model's plain forward."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    length = inputs["completion_ids"].size(1)
    output = model(input_ids=ids, attention_mask=attention, output_hidden_states=True)
    logps = output.logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)[:, -length:]
    head = model.value_function.head
    values = output.hidden_states[-1] @ head.weight.T + head.bias
    return logps, values.squeeze(-1)[:, -length - 1 : -1]


@pytest.mark.parametrize("options", [{}, {"gamma": 0.9, "lam": 0.7, "kl_estimator": "k3", "lam_value": 1.0}])
def test_advantages_and_returns_are_ppos_written_out(tiny, options):
    """Score on the last token, minus the KL of each; GAE row by row; whitened over the batch."""
    args = config(PPOConfig, kl_coef=0.3, max_steps=3, num_ppo_epochs=1, missing_eos_penalty=0.5, **options)
    trainer = make_trainer(Recording, tiny, args)
    torch.nn.init.normal_(trainer.value_function.head.weight, std=0.1)
    trainer.train()
    reference, scored = load(tiny), 0
    for step, output in enumerate(trainer.rollouts):
        mask, values, old = output["completion_mask"], output["old_values"], output["old_per_token_logps"]
        texts = trainer.processing_class.batch_decode(output["completion_ids"], skip_special_tokens=True)
        reference.value_function = trainer.value_function
        ref = forward(reference, output)[0]
        expected = torch.zeros_like(values)
        returns = torch.zeros_like(values)
        for i, score in enumerate(letters(texts)):
            length = int(mask[i].sum())
            d = old[i, :length] - ref[i, :length]
            kl = d if args.kl_estimator == "k1" else torch.exp(-d) - 1 + d
            if trainer.processing_class.eos_token_id not in output["completion_ids"][i, :length]:
                score -= 0.5
                scored += 1
            rewards = [-0.3 * x for x in kl.tolist()]
            rewards[-1] += score
            v = [*values[i, :length].tolist(), 0.0]
            for lam, into in (
                (args.lam, expected),
                (args.lam_value if args.lam_value is not None else args.lam, returns),
            ):
                for t in range(length):
                    deltas = [rewards[k] + args.gamma * v[k + 1] - v[k] for k in range(t, length)]
                    into[i, t] = sum((args.gamma * lam) ** k * delta for k, delta in enumerate(deltas))
            returns[i, :length] += values[i, :length]
        torch.testing.assert_close(output["returns"], returns, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output["advantages"], masked_whiten(expected, mask), rtol=1e-4, atol=1e-4)
        assert step or (old - ref)[mask.bool()].abs().max() < 1e-5  # before the first update both models are the same
    assert 0 < scored < 24


def test_the_loss_is_ppos_clip_plus_the_clipped_value_loss_written_out(tiny):
    args = config(PPOConfig, max_steps=6, num_ppo_epochs=3, num_mini_batches=2, vf_coef=0.7, cliprange_value=0.05)
    trainer = trained(Recording, tiny, args)
    clipped = 0
    model = trainer.model
    for inputs, _ in zip(trainer.batches[-2:], range(2), strict=True):
        logps, values = forward(model, inputs)
        total = policy = value = 0.0
        for i, t in inputs["completion_mask"].nonzero().tolist():
            a, r = inputs["advantages"][i, t], torch.exp(logps[i, t] - inputs["old_per_token_logps"][i, t])
            policy = policy - torch.min(r * a, r.clamp(0.8, 1.2) * a)
            target, old = inputs["returns"][i, t], inputs["old_values"][i, t]
            near = old + (values[i, t] - old).clamp(-0.05, 0.05)
            clipped += int(near != values[i, t])
            value = value + 0.5 * torch.max((values[i, t] - target) ** 2, (near - target) ** 2)
        total = (policy + 0.7 * value) / (inputs["num_items_in_batch"] / 2)  # 2 mini-batches: half the tokens each
        trainer.current_gradient_accumulation_steps = 1
        model.train()
        loss = PPOTrainer._compute_loss(trainer, model, inputs)
        assert loss.item() == pytest.approx(total.item(), rel=1e-4)
        named = [p for p in model.parameters() if p.requires_grad]
        for ours, slow in zip(torch.autograd.grad(loss, named), torch.autograd.grad(total, named), strict=True):
            torch.testing.assert_close(ours, slow, rtol=1e-3, atol=1e-5)
    assert clipped > 0


def test_without_a_value_loss_the_policys_gradient_is_grpos_on_the_same_advantages(tiny):
    trainer = trained(Recording, tiny, config(PPOConfig, max_steps=2, vf_coef=0.0))
    inputs = trainer.batches[-1]
    loss = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    ours = PPOTrainer._compute_loss(trainer, trainer.model, inputs)
    named = {n: p for n, p in trainer.model.named_parameters() if not n.startswith(NAME)}
    for theirs, mine in zip(
        torch.autograd.grad(loss, named.values()), torch.autograd.grad(ours, named.values()), strict=True
    ):
        assert torch.equal(theirs, mine)
    assert (value_weights(trainer) == 0).all()


def test_the_value_loss_reaches_the_trunk_through_a_shared_head(tiny):
    trainer = make_trainer(Recording, tiny, config(PPOConfig, max_steps=1, vf_coef=1.0))
    torch.nn.init.normal_(trainer.value_function.head.weight)
    trainer.train()
    with_values = trainer.gradients[0]["model.layers.0.mlp.up_proj.weight"]
    trainer.args.vf_coef = 0.0
    trainer.train()
    assert not torch.allclose(with_values, trainer.gradients[-1]["model.layers.0.mlp.up_proj.weight"])


def test_values_cost_no_forward_of_their_own(tiny):
    def count(trainer_class, config_class, **options):
        trainer = make_trainer(trainer_class, tiny, config(config_class, max_steps=4, **options))
        calls = []
        trainer.model.model.register_forward_hook(lambda *_: calls.append(1) if not trainer.model._generating else None)
        trainer.model._generating = False
        generate = trainer.model.generate

        def counted(*args, **kwargs):
            trainer.model._generating = True
            try:
                return generate(*args, **kwargs)
            finally:
                trainer.model._generating = False

        trainer.model.generate = counted
        trainer.train()
        return len(calls)

    from trl import GRPOConfig

    ours = count(PPOTrainer, PPOConfig, num_ppo_epochs=2, kl_coef=0.0, num_generations=4)
    assert ours == count(GRPOTrainer, GRPOConfig, num_iterations=2, num_generations=4)


@pytest.mark.parametrize("epochs", [1, 2])
def test_how_a_batch_is_cut_into_micro_batches_changes_nothing(tiny, epochs):
    ends = []
    for size, accumulation in ((16, 1), (4, 4), (1, 16)):
        args = config(
            PPOConfig,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            num_ppo_epochs=epochs,
            max_steps=4,
            vf_coef=0.5,
            shuffle_dataset=False,
        )
        trainer = trained(PPOTrainer, tiny, args, model=load(tiny, torch.float64), rollout_func=fixed_rollout)
        ends.append(weights(trainer.model))
    assert (ends[0] - ends[1]).abs().max() <= 1e-6
    assert (ends[0] - ends[2]).abs().max() <= 1e-6


def test_two_processes_train_as_one(tiny, tmp_path):
    job = {
        "trainer": "PPO",
        "path": tiny,
        "weights": str(tmp_path / "weights.pt"),
        "options": {"num_ppo_epochs": 2, "max_steps": 4, "num_generations": 1, "whiten_rewards": True, "vf_coef": 0.5},
    }
    on_two_processes("tests.trainers.train_on_processes", json.dumps(job))
    args = config(PPOConfig, per_device_train_batch_size=12, shuffle_dataset=False, **job["options"])
    single = trained(PPOTrainer, tiny, args, model=load(tiny, torch.float64), rollout_func=fixed_rollout)
    assert (torch.load(job["weights"]) - weights(single.model)).abs().max() <= 1e-6


def test_tokens_of_a_tool_inside_an_answer_change_nothing_for_the_others(tiny):
    """Same model tokens, with the environment's between them or after them: advantages of the model's stay the same."""

    def rollout(prompts, trainer):
        output = fixed_rollout(prompts, trainer)
        output["env_mask"] = []
        for i, ids in enumerate(output["completion_ids"]):
            ids[:] = [5, 6, 7, 8] if i % 2 else [5, 6, 9, 9, 9, 7, 8]
            output["env_mask"].append([1] * 4 if i % 2 else [1, 1, 0, 0, 0, 1, 1])
            output["logprobs"][i] = [0.0] * len(ids)
        return output

    args = config(
        PPOConfig, max_steps=1, max_completion_length=8, kl_coef=0.0, whiten_advantages=False, lam=0.5, gamma=0.9
    )
    trainer = trained(
        Recording, tiny, args, rollout_func=rollout, reward_funcs=lambda completions, **_: [1.0] * len(completions)
    )
    output = trainer.rollouts[0]
    kept = (output["completion_mask"] * output["tool_mask"]).bool()
    advantages = [row[mask] for row, mask in zip(output["advantages"], kept, strict=True)]
    assert {len(row) for row in advantages} == {4}
    for row in advantages:
        torch.testing.assert_close(row, torch.tensor([0.45**3, 0.45**2, 0.45, 1.0]))  # values are 0 at the start
    assert (output["advantages"][~kept] == 0).all()


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_the_policys_folder_loads_as_any_model_and_the_value_function_lies_beside_it(tiny, kind):
    trainer = trained(PPOTrainer, tiny, config(PPOConfig, max_steps=2, value_model=kind))
    trainer.save_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = AutoModelForCausalLM.from_pretrained(trainer.args.output_dir, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(weights(model), policy_weights(trainer))
    name = "value_head.safetensors" if kind == "shared" else "value_model/config.json"
    assert os.path.exists(f"{trainer.args.output_dir}/{name}")


@pytest.mark.parametrize(
    "options", [{}, {"value_model": "separate", "value_learning_rate": 3e-3}], ids=["shared", "separate"]
)
def test_resume_ends_where_an_unbroken_run_ends(tiny, options):
    """Weights, value function, optimizer, schedule and random state, with completions sampled from the model."""
    options = {**options, "max_steps": 8, "num_ppo_epochs": 2, "lr_scheduler_type": "linear", "kl_coef": 0.1}
    whole = trained(PPOTrainer, tiny, config(PPOConfig, **options, save_strategy="steps", save_steps=4))
    resumed = make_trainer(PPOTrainer, tiny, config(PPOConfig, **options))
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    assert resumed.state.global_step == 8
    assert (policy_weights(resumed) - policy_weights(whole)).abs().max() <= 1e-6
    assert (value_weights(resumed) - value_weights(whole)).abs().max() <= 1e-6
    assert value_weights(whole).abs().max() > 0


def test_a_critic_has_its_own_learning_rate(tiny):
    ends = {}
    for rate in (0.0001, 0.01):
        args = config(PPOConfig, max_steps=2, value_model="separate", value_learning_rate=rate, kl_coef=0.0)
        trainer = make_trainer(PPOTrainer, tiny, args, rollout_func=fixed_rollout)
        before = value_weights(trainer)
        trainer.train()
        rates = {round(group["lr"], 6) for group in trainer.optimizer.param_groups if group["params"]}
        assert rates == {0.01, rate}
        ends[rate] = (value_weights(trainer) - before).abs().max()
    assert ends[0.01] > 20 * ends[0.0001] > 0


def test_lora_trains_the_adapters_and_the_head_and_leaves_the_base_alone(tiny, tmp_path):
    base = load(tiny)
    trainer = trained(
        PPOTrainer, tiny, config(PPOConfig, max_steps=3), peft_config=LoraConfig(target_modules=["q_proj", "v_proj"])
    )
    for name, parameter in trainer.model.get_base_model().named_parameters():
        plain = name.replace(".base_layer", "")
        if "lora_" not in name:
            assert torch.equal(parameter, base.get_parameter(plain)), name
    assert value_weights(trainer).abs().max() > 0
    assert sum(p.abs().sum() for n, p in trainer.model.named_parameters() if "lora_B" in n) > 0
    trainer.save_model()
    adapter = AutoPeftModelForCausalLM.from_pretrained(trainer.args.output_dir)
    merged = adapter.merge_and_unload()
    merged.save_pretrained(tmp_path)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert (weights(merged) - weights(base)).abs().max() > 0
    assert not any(name.startswith(NAME) for name, _ in merged.named_parameters())


def test_lora_resumes(tiny):
    options = {"max_steps": 4, "num_ppo_epochs": 2}
    lora = {"peft_config": LoraConfig(target_modules=["q_proj", "v_proj"])}
    whole = trained(PPOTrainer, tiny, config(PPOConfig, **options, save_strategy="steps", save_steps=2), **lora)
    resumed = make_trainer(PPOTrainer, tiny, config(PPOConfig, **options), **lora)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert (weights(resumed.model) - weights(whole.model)).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_gradient_checkpointing_gives_the_same_steps(tiny, kind):
    ends = [
        weights(
            trained(
                PPOTrainer, tiny, config(PPOConfig, max_steps=4, value_model=kind, gradient_checkpointing=checkpointing)
            ).model
        )
        for checkpointing in (False, True)
    ]
    assert (ends[0] - ends[1]).abs().max() <= 1e-6


def test_bfloat16_runs_and_keeps_its_values_in_float32(tiny):
    args = config(PPOConfig, max_steps=3, bf16=True)
    trainer = trained(Recording, tiny, args)
    assert trainer.rollouts[0]["old_values"].dtype == torch.float32
    assert all(math.isfinite(row["loss/value_avg"]) for row in updates(trainer))
    assert weights(trainer.model).isfinite().all()


def test_value_warmup_trains_the_value_function_alone(tiny):
    args = config(PPOConfig, max_steps=4, value_warmup_steps=4)
    trainer = make_trainer(PPOTrainer, tiny, args)
    before = policy_weights(trainer)
    trainer.train()
    assert torch.equal(policy_weights(trainer), before)
    assert value_weights(trainer).abs().max() > 0
    later = trained(PPOTrainer, tiny, config(PPOConfig, max_steps=5, value_warmup_steps=4))
    assert not torch.equal(policy_weights(later), before)


def test_positive_examples_add_their_language_model_loss(tiny):
    args = config(PPOConfig, max_steps=2, num_ppo_epochs=1, positive_lm_coef=0.5, positive_threshold=0.3, vf_coef=0.0)
    trainer = trained(Recording, tiny, args)
    inputs = trainer.batches[-1]
    plain = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    ours = PPOTrainer._compute_loss(trainer, trainer.model, inputs)
    texts = trainer.processing_class.batch_decode(inputs["completion_ids"], skip_special_tokens=True)
    positive = torch.tensor([[float(score >= 0.3)] for score in letters(texts)]) * inputs["completion_mask"]
    assert 0 < positive.sum() < inputs["completion_mask"].sum()
    expected = -0.5 * (forward(trainer.model, inputs)[0] * positive).sum() / positive.sum()
    assert (ours - plain).item() == pytest.approx(expected.item(), rel=1e-4)


def test_completions_that_no_reward_scores_move_nothing(tiny):
    def none(completions, **columns):
        return [None] * len(completions)

    trainer = make_trainer(PPOTrainer, tiny, config(PPOConfig, max_steps=2), reward_funcs=none)
    before = weights(trainer.model)
    trainer.train()
    assert torch.equal(weights(trainer.model), before)

    def some(completions, **columns):
        return [None if i % 2 else 1.0 for i in range(len(completions))]

    trainer = trained(Recording, tiny, config(PPOConfig, max_steps=2), reward_funcs=some)
    assert weights(trainer.model).isfinite().all()
    for output in trainer.rollouts:
        assert (output["advantages"][1::2] == 0).all()
        assert (output["value_mask"][1::2] == 0).all()
        assert output["value_mask"][::2].sum() == output["completion_mask"][::2].sum()


def test_metrics_have_the_names_of_trl_112(tiny):
    trainer = trained(PPOTrainer, tiny, config(PPOConfig, max_steps=3, num_ppo_epochs=3))
    names = ["kl", "entropy", "non_score_reward", "rlhf_reward", "scores"]
    names = [f"objective/{name}" for name in names] + [
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/entropy_avg",
    ]
    names += [
        "loss/policy_avg",
        "loss/value_avg",
        "val/clipfrac_avg",
        "val/ratio",
        "val/ratio_var",
        "val/num_eos_tokens",
    ]
    first, *_, last = updates(trainer)
    assert {*names, "val/explained_variance"} <= set(first)
    assert first["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert first["objective/scores"] == pytest.approx(first["reward"], abs=1e-6)
    assert first["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert last["policy/approxkl_avg"] > 0
    assert "frac_reward_zero_std" not in first


def test_truncated_completions_can_be_masked(tiny):
    trainer = trained(Recording, tiny, config(PPOConfig, max_steps=2, mask_truncated_completions=True))
    assert weights(trainer.model).isfinite().all()
    assert all(output["value_mask"].sum() <= output["completion_mask"].sum() for output in trainer.rollouts)


def test_kl_in_the_loss_is_grpos_and_none_is_in_the_reward(tiny):
    trainer = trained(Recording, tiny, config(PPOConfig, max_steps=2, beta=0.2, num_ppo_epochs=2))
    assert "ref_per_token_logps" in trainer.batches[-1]
    assert updates(trainer)[-1]["kl"] > 0
    assert updates(trainer)[0]["objective/non_score_reward"] == 0


def test_evaluation_and_chat_prompts_and_specs_work(tiny):
    chat = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"{i}+1="}], "answer": str(i + 1)} for i in range(16)]
    )
    funcs, reward_weights = make_reward_funcs({"type": "levenshtein", "target": "answer"})
    args = config(PPOConfig, max_steps=2, reward_weights=reward_weights, per_device_eval_batch_size=8)
    trainer = make_trainer(PPOTrainer, tiny, args, reward_funcs=funcs, train_dataset=chat, eval_dataset=chat)
    trainer.processing_class.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    trainer.train()
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_reward"] <= 1
    assert math.isfinite(metrics["eval_loss/value_avg"])


def test_an_optimizer_without_the_value_function_is_refused(tiny):
    policy = load(tiny)
    pair = (torch.optim.SGD(policy.parameters(), lr=0.1), None)
    with pytest.raises(ConfigError, match="lacks the value function, which would not train"):
        make_trainer(PPOTrainer, tiny, config(PPOConfig), model=policy, optimizers=pair).train()
    trainer = make_trainer(PPOTrainer, tiny, config(PPOConfig, max_steps=2))
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    trainer.train()
    assert value_weights(trainer).abs().max() > 0


def test_wrong_arguments_are_refused(tiny):
    with pytest.raises(ConfigError, match="args is a CISPOConfig: PPOTrainer takes a PPOConfig"):
        make_trainer(PPOTrainer, tiny, training.config(CISPOConfig))
    with pytest.raises(ConfigError, match="has no `score` layer"):
        make_trainer(PPOTrainer, tiny, config(PPOConfig), value_model=load(tiny))
