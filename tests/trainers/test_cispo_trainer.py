import json
import math

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from tests.launching import on_two_processes
from tests.trainers.training import PROMPTS, config, fixed_rollout, letters, load, make_trainer, trained, weights
from trl_ext import CISPOConfig, CISPOTrainer
from trl_ext.losses import cispo_loss

VARIANTS = {
    "plain": {},
    "floor": {"importance_weight_min": 0.9, "importance_weight_max": 1.1},
    "mask": {"trust_region_low": 0.95, "trust_region_high": 1.05},
    "prompt": {"loss_aggregation": "prompt"},
    "sequence": {"loss_aggregation": "sequence"},
    "all": {
        "importance_weight_min": 0.9,
        "importance_weight_max": 1.1,
        "trust_region_low": 0.95,
        "trust_region_high": 1.05,
        "loss_aggregation": "prompt",
    },
}


@pytest.mark.parametrize("bound", [1.02, 5.0])
def test_trains_exactly_as_trl_with_the_same_bound(tiny, bound):
    options = {"num_iterations": 4, "max_steps": 12, "steps_per_generation": 2, "per_device_train_batch_size": 16}
    ours = trained(CISPOTrainer, tiny, config(CISPOConfig, importance_weight_max=bound, **options))
    trls = trained(GRPOTrainer, tiny, config(GRPOConfig, loss_type="cispo", epsilon_high=bound, **options))
    assert (weights(ours.model) - weights(load(tiny))).abs().max() > 1e-3
    assert (weights(ours.model) - weights(trls.model)).abs().max() <= 1e-6
    assert sum(row["cispo_clip_ratio"] for row in updates(ours)) > 0  # the bound does act in this run


def test_a_pipeline_for_grpo_works_after_renaming_the_two_classes(tiny):
    arguments = {"loss_type": "cispo", "epsilon_high": 4.0, "num_iterations": 2, "max_steps": 2}
    trainer = trained(CISPOTrainer, tiny, config(CISPOConfig, **arguments))
    assert trainer.args.importance_weight_max == 4.0
    assert trainer.state.global_step == 2


def updates(trainer):
    """What was logged for each optimizer step."""
    return [row for row in trainer.state.log_history if "cispo_clip_ratio" in row]


class Recording(CISPOTrainer):
    """Keeps the inputs and the gradient of every micro-batch."""

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        (gradient,) = torch.autograd.grad(loss, model.lm_head.weight, retain_graph=True)
        self.recorded.append((dict(inputs), gradient, loss.detach().item()))
        return loss

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.generated.append(output)
        return output


def written_out(trainer, model, generated, inputs, plain_advantages):
    """The loss of a micro-batch as its definition says: unit by unit, token by token, through `cispo_loss`."""
    args, group = trainer.args, trainer.num_generations
    mask = generated["completion_mask"]
    lengths = mask.sum(1).tolist()
    rows = len(lengths)
    if args.loss_aggregation == "token":
        row_weight = [1 / sum(lengths)] * rows
    elif args.loss_aggregation == "sequence":
        row_weight = [1 / rows / length for length in lengths]
    else:
        of_group = [sum(lengths[i // group * group : i // group * group + group]) for i in range(rows)]
        row_weight = [1 / (rows / group) / tokens for tokens in of_group]
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    width = inputs["completion_ids"].size(1)
    total = 0.0
    for i in range(len(ids)):
        (row,) = [
            j
            for j in range(rows)
            if torch.equal(generated["completion_ids"][j], inputs["completion_ids"][i])
            and torch.equal(generated["prompt_ids"][j], inputs["prompt_ids"][i])
        ]
        for t in range(width):
            if not inputs["completion_mask"][i, t]:
                continue
            logp = logits[i, t - width].log_softmax(-1)[inputs["completion_ids"][i, t]]
            total = total + cispo_loss(
                logp.view(1, 1),
                inputs["old_per_token_logps"][i, t].view(1, 1),
                plain_advantages[row].view(1, 1),
                torch.ones(1, 1),
                importance_weight_min=args.importance_weight_min,
                importance_weight_max=args.importance_weight_max,
                trust_region_low=args.trust_region_low,
                trust_region_high=args.trust_region_high,
                normalizer=1 / row_weight[row],
            )
    # TRL averages the windows of a generation batch: this micro-batch's share, times the micro-batches per window
    return total * args.steps_per_generation / trainer.current_gradient_accumulation_steps


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_equals_cispo_loss_written_out(tiny, variant):
    args = config(
        CISPOConfig,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        num_iterations=2,
        max_steps=4,
        max_completion_length=12,
        scale_rewards="none",
        **VARIANTS[variant],
    )
    trainer = make_trainer(Recording, tiny, args, model=load(tiny, torch.float64))
    trainer.recorded, trainer.generated = [], []

    oracle = load(tiny, torch.float64)
    original = trainer.training_step

    def step(model, inputs, num_items_in_batch=None):
        oracle.load_state_dict(model.state_dict())
        result = original(model, inputs, num_items_in_batch)
        (recorded, gradient, value) = trainer.recorded.pop()
        (generated,) = trainer.generated
        rewards = torch.tensor(
            letters(trainer.processing_class.batch_decode(generated["completion_ids"], skip_special_tokens=True)),
            dtype=torch.float64,
        )
        groups = rewards.view(-1, 4)
        plain = (groups - groups.mean(1, keepdim=True)).view(-1)
        loss = written_out(trainer, oracle, generated, recorded, plain)
        (expected,) = torch.autograd.grad(loss, oracle.lm_head.weight)
        checked.append(expected.norm().item())
        assert value == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)  # rewards are float32 in TRL
        assert (gradient - expected).norm() <= 1e-5 * expected.norm() + 1e-8
        return result

    checked = []
    trainer.training_step = step
    trainer.train()
    assert len(checked) == 8
    assert max(checked) > 1e-3


@pytest.mark.parametrize("variant", ["plain", "all", "sequence"])
def test_how_a_batch_is_cut_does_not_matter(tiny, variant):
    """1 x 16, 16 x 1 and 4 x 4 (accumulation x batch) end in the same weights: prompt groups are cut apart too."""
    results = []
    for accumulation in (1, 4, 16):
        args = config(
            CISPOConfig,
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
            num_iterations=2,
            max_steps=6,
            shuffle_dataset=False,
            optim="sgd",  # Adam would blow rounding up wherever a gradient is nearly 0
            learning_rate=0.3,
            **VARIANTS[variant],
        )
        trainer = make_trainer(CISPOTrainer, tiny, args, model=load(tiny, torch.float64), rollout_func=fixed_rollout)
        trainer.train()
        results.append(weights(trainer.model))
    assert (results[0] - weights(load(tiny))).abs().max() > 1e-2
    for other in results[1:]:
        difference = (other - results[0]).abs()
        assert difference.max() <= 1e-6
        assert difference.mean() <= 1e-8


def test_two_processes_end_where_one_does(tiny, tmp_path):
    """Every variant at once, with a prompt group that lies half on one process and half on the other."""
    options = {"num_iterations": 2, "max_steps": 4, "optim": "sgd", "learning_rate": 0.3, **VARIANTS["all"]}
    job = {"path": tiny, "options": options, "weights": str(tmp_path / "two.pt")}
    on_two_processes("tests.trainers.train_on_processes", json.dumps(job))
    args = config(CISPOConfig, per_device_train_batch_size=12, shuffle_dataset=False, **options)
    one = trained(CISPOTrainer, tiny, args, model=load(tiny, torch.float64), rollout_func=fixed_rollout)
    difference = (torch.load(tmp_path / "two.pt") - weights(one.model)).abs()
    assert (weights(one.model) - weights(load(tiny))).abs().max() > 1e-2
    assert difference.max() <= 1e-6
    assert difference.mean() <= 1e-8


def test_truncated_completions_are_no_units(tiny):
    """With `mask_truncated_completions` a completion without tokens is neither divided by 0 nor counted."""

    def rollout(prompts, trainer):
        output = fixed_rollout(prompts, trainer)
        for ids in output["completion_ids"][::2]:
            ids[-1] = 5  # no end of sequence: truncated
        return output

    args = config(
        CISPOConfig, mask_truncated_completions=True, loss_aggregation="sequence", num_iterations=2, max_steps=4
    )
    trainer = make_trainer(Recording, tiny, args, rollout_func=rollout)
    trainer.recorded, trainer.generated = [], []
    trainer.train()
    for output in trainer.generated:
        lengths = output["completion_mask"].sum(1)
        assert (lengths > 0).tolist() == [False, True] * 4
        # each of the 4 units weighs 1/4: with TRL's 1/N per token, the scales sum to N over all tokens
        tokens = trainer._aggregation_scale(output) * lengths
        assert tokens.sum().item() == pytest.approx(lengths.sum().item())
        assert output["advantages"].isfinite().all()
    assert weights(trainer.model).isfinite().all()


def test_environment_tokens_count_in_no_metric_and_no_unit(tiny):
    def rollout(prompts, trainer):
        output = fixed_rollout(prompts, trainer)
        output["env_mask"] = [[1] + [0] * (len(ids) - 1) for ids in output["completion_ids"]]
        return output

    args = config(CISPOConfig, loss_aggregation="sequence", num_iterations=2, max_steps=2)
    trainer = make_trainer(Recording, tiny, args, rollout_func=rollout)
    trainer.recorded, trainer.generated = [], []
    trainer.train()
    output = trainer.generated[0]
    assert output["num_items_in_batch"].item() == len(output["advantages"])  # one token of the model's each
    token = trained(CISPOTrainer, tiny, config(CISPOConfig, num_iterations=2, max_steps=2), rollout_func=rollout)
    # units of one token each weigh the same either way
    assert (weights(token.model) - weights(trainer.model)).abs().max() <= 1e-6


def test_metrics_tell_both_clips_on_both_signs_and_the_weights(tiny):
    bounds = {"importance_weight_min": 0.5, "importance_weight_max": 2.0, "trust_region_high": 3.0}
    trainer = make_trainer(CISPOTrainer, tiny, config(CISPOConfig, num_iterations=2, **bounds))
    trainer.model.train()
    ratio = torch.tensor([[4.0, 2.5, 0.25, 1.0, 1.0], [3.0, 0.25, 0.25, 1.0, 99.0]])
    inputs = {
        "completion_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
        "tool_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
        "old_per_token_logps": torch.zeros(2, 5),
    }
    trainer._weighted_advantages(inputs, ratio.log(), torch.tensor([1.0, -1.0]))
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert logged == {
        "clip_ratio/high_positive": pytest.approx(2 / 8),
        "clip_ratio/high_negative": pytest.approx(1 / 8),
        "clip_ratio/low_positive": pytest.approx(1 / 8),
        "clip_ratio/low_negative": pytest.approx(2 / 8),
        "clip_ratio/trust_region": pytest.approx(1 / 8),
        "importance_weight/mean": pytest.approx((0 + 2 + 0.5 + 1 + 2 + 0.5 + 0.5 + 1) / 8),
        "importance_weight/max": pytest.approx(2.0),
    }


def test_clip_metric_of_positive_tokens_is_trls_own(tiny):
    trainer = trained(CISPOTrainer, tiny, config(CISPOConfig, num_iterations=4, importance_weight_max=1.03))
    rows = updates(trainer)
    assert rows[0]["importance_weight/mean"] == pytest.approx(1.0, abs=1e-5)  # on policy
    assert max(row["cispo_clip_ratio"] for row in rows) > 0
    assert all(row["clip_ratio/high_positive"] == pytest.approx(row["cispo_clip_ratio"]) for row in rows)


def test_sequence_level_weights_equal_trls(tiny):
    options = {"importance_sampling_level": "sequence", "num_iterations": 3, "max_steps": 6}
    ours = trained(CISPOTrainer, tiny, config(CISPOConfig, importance_weight_max=1.01, **options))
    trls = trained(GRPOTrainer, tiny, config(GRPOConfig, loss_type="cispo", epsilon_high=1.01, **options))
    assert (weights(ours.model) - weights(trls.model)).abs().max() <= 1e-6
    bounds = {"importance_weight_min": 0.99, "importance_weight_max": 1.01}
    floor = trained(CISPOTrainer, tiny, config(CISPOConfig, **bounds, **options))
    assert (weights(floor.model) - weights(trls.model)).abs().max() > 1e-6


def test_a_ratio_that_underflows_gives_no_nan(tiny):
    trainer = make_trainer(CISPOTrainer, tiny, config(CISPOConfig, importance_weight_min=0.5, num_iterations=2))
    logps = torch.tensor([[-200.0, -1.0]])
    inputs = {"completion_mask": torch.ones(1, 2), "old_per_token_logps": torch.tensor([[-1.0, -200.0]])}
    assert trainer._weighted_advantages(inputs, logps, torch.ones(1)).isfinite().all()


def test_one_update_per_batch_warns_once_that_the_clip_cannot_act(tiny, caplog):
    make_trainer(CISPOTrainer, tiny, config(CISPOConfig))
    assert sum("clip cannot act" in record.message for record in caplog.records) == 1
    caplog.clear()
    make_trainer(CISPOTrainer, tiny, config(CISPOConfig, num_iterations=2))
    make_trainer(CISPOTrainer, tiny, config(CISPOConfig, steps_per_generation=2))
    assert not any("clip cannot act" in record.message for record in caplog.records)


def test_kl_entropy_lora_eval_chat_reward_lists_and_weights_are_trls(tiny):
    """One run through what `GRPOTrainer` takes: none of it is ours, all of it must still work."""
    chat = PROMPTS.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})

    def first_reward(completions, **columns):
        return letters([completion[0]["content"] for completion in completions])

    def unscorable(completions, **columns):
        return [None] * len(completions)

    args = config(
        CISPOConfig,
        beta=0.1,
        entropy_coef=0.01,
        reward_weights=[1.0, 0.5],
        num_iterations=2,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=8,
        importance_weight_min=0.9,
        loss_aggregation="prompt",
    )
    trainer = make_trainer(
        CISPOTrainer,
        tiny,
        args,
        reward_funcs=[first_reward, unscorable],
        train_dataset=chat,
        eval_dataset=chat.select(range(3)),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )
    trainer.processing_class.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    trainer.train()
    history = trainer.state.log_history
    assert any("eval_reward" in row for row in history)
    assert all(math.isfinite(row["kl"]) for row in history if "kl" in row)
    assert trainer.state.global_step == 4


def test_an_environment_may_bring_its_own_prompts_and_reward(tiny):
    class Guess:
        def reset(self, **row):
            self.target = "7"
            return "guess"

        def get_reward(self):
            return 1.0 if self.target else 0.0

    args = config(CISPOConfig, num_iterations=2, max_steps=2)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = (  # TRL wants one that can render a tool call
        "{% for m in messages %}{{ m['content'] }}{% for call in m.get('tool_calls', []) %}"
        "{{ call['function']['name'] }}{{ call['function']['arguments'] }}{% endfor %}{% endfor %}"
    )
    options = {"train_dataset": None, "reward_funcs": None, "environment_factory": Guess}
    trainer = trained(CISPOTrainer, tiny, args, processing_class=tokenizer, **options)
    assert [row["reward"] for row in trainer.state.log_history if "reward" in row] == [1.0]


def test_resume_ends_where_an_unbroken_run_ends(tiny, tmp_path):
    options = {
        "num_iterations": 2,
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 4,
        "save_only_model": False,
        "importance_weight_min": 0.9,
    }
    whole = trained(CISPOTrainer, tiny, config(CISPOConfig, **options), rollout_func=fixed_rollout)
    checkpoint = f"{whole.args.output_dir}/checkpoint-4"
    resumed = make_trainer(CISPOTrainer, tiny, config(CISPOConfig, **options), rollout_func=fixed_rollout)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.state.global_step == 8
    assert (weights(resumed.model) - weights(whole.model)).abs().max() <= 1e-6
    loaded = AutoModelForCausalLM.from_pretrained(f"{whole.args.output_dir}/checkpoint-8")
    assert (weights(loaded) - weights(whole.model)).abs().max() <= 1e-6


def test_model_and_args_may_be_a_name_and_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrainingArguments, "_validate_args", lambda self: None)  # refuses TRL's bf16 default on a CPU
    trainer = CISPOTrainer(tiny, letters, train_dataset=PROMPTS)
    assert trainer.args.output_dir.endswith("-CISPO")
    assert trainer.epsilon_high == 5.0
