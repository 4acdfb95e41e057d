import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM
from trl import GRPOConfig, GRPOTrainer

from tests.launching import on_two_processes
from tests.trainers.lean_runs import RAGGED, Lean, config, distance, flat, nothing, saved, trained
from tests.trainers.training import fixed_rollout, letters, load, make_trainer, weights
from trl_ext import CISPOConfig, CISPOTrainer, HybridConfig, HybridTrainer, PPOConfig, PPOTrainer
from trl_ext.builtin.tiny_model import tiny_tokenizer
from trl_ext.trainers.rows import loss_mask

EXACT = 1e-5  # of how far training moved the weights, in float32

REGROUPED = {
    "grpo": {"loss_type": "grpo"},
    "grpo-sequence-level": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "grpo-two-sided": {"loss_type": "grpo", "delta": 1.1},
    "grpo-off-policy-mask": {"loss_type": "grpo", "off_policy_mask_threshold": 1e-4},
    "grpo-kl": {"loss_type": "grpo", "beta": 0.5, "use_bias_correction_kl": True},
    "sapo": {"loss_type": "sapo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "learning_rate": 0.02},
    "dapo": {"loss_type": "dapo"},
    "dapo-kl": {"loss_type": "dapo", "beta": 0.5},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "cispo-adam": {"loss_type": "cispo", "epsilon_high": 5.0, "optim": "adamw_torch", "learning_rate": 1e-3},
    "vespo": {"loss_type": "vespo"},
}
ONLY_CUT = {
    "bnpo": {"loss_type": "bnpo"},
    "entropy bonus": {"loss_type": "dapo", "entropy_coef": 0.1},
    "top_entropy_quantile": {"loss_type": "dapo", "top_entropy_quantile": 0.5},
}


def pair(path, options, **more):
    """A lean and a plain run of TRL's trainer."""
    return [trained(c, path, config(GRPOConfig, **options), **more) for c in (Lean, GRPOTrainer)]


@pytest.mark.parametrize("name", REGROUPED)
def test_weights_end_where_the_plain_trainers_end(tiny, name):
    lean, plain = pair(tiny, REGROUPED[name])
    assert distance(lean, plain, tiny) <= EXACT
    skipped, tokens = saved(lean)
    assert skipped == 0.0 if "kl" in name else skipped > 0.4
    assert tokens > 0.2 if "kl" in name else tokens > 0.6


@pytest.mark.parametrize("name", ONLY_CUT)
def test_where_the_loss_depends_on_which_rows_stand_together_only_padding_is_cut(tiny, name, caplog):
    lean, plain = pair(tiny, ONLY_CUT[name])
    assert distance(lean, plain, tiny) <= EXACT
    skipped, tokens = saved(lean)
    assert skipped == 0.0
    assert tokens > 0.02
    said = [r.message for r in caplog.records if "lean_update cuts padding, and leaves" in r.message]
    assert len(said) == 1
    assert name in said[0]


def test_so_it_is_with_the_auxiliary_loss_of_experts(tiny, tmp_path):
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_key_value_heads": 4, "num_local_experts": 4, "router_aux_loss_coef": 0.5}
    MixtralForCausalLM(MixtralConfig(vocab_size=len(tokenizer), **sizes, **experts)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lean, plain = pair(str(tmp_path), {"loss_type": "dapo", "max_steps": 3})
    assert lean.aux_loss_enabled
    assert saved(lean)[0] == 0.0
    assert distance(lean, plain, str(tmp_path)) <= EXACT


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "num_iterations": 1},
        {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "num_iterations": 2},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 3, "num_iterations": 3},
        {"gradient_accumulation_steps": 1, "steps_per_generation": 4, "per_device_train_batch_size": 1},
        {"pad_to_multiple_of": 8},
    ],
    ids=str,
)
def test_windows_that_begin_or_end_in_the_middle_of_a_rollout_are_exact_too(tiny, options):
    """The last of the epoch has fewer micro-batches, where their number is odd."""
    options = {"max_steps": -1, "num_train_epochs": 1, "loss_type": "grpo", **options}
    lean, plain = pair(tiny, options, train_dataset=RAGGED.select(range(9)))
    assert lean.state.global_step == plain.state.global_step > 1
    assert distance(lean, plain, tiny) <= EXACT
    assert saved(lean)[1] > 0.0


VARIANTS = {
    "token": {},
    "prompt": {"loss_aggregation": "prompt"},
    "sequence": {"loss_aggregation": "sequence"},
    "floor and trust region": {
        "importance_weight_min": 0.99,
        "importance_weight_max": 1.01,
        "trust_region_low": 0.995,
        "trust_region_high": 1.005,
    },
}
PPO = {"num_generations": 1, "kl_coef": 0.05, "vf_coef": 0.5}
HYBRID = {"kl_coef": 0.0, "num_generations": 4, "sft_steps": 1}
OURS = {
    **{f"CISPO {name}": (CISPOTrainer, CISPOConfig, options) for name, options in VARIANTS.items()},
    "PPO shared": (PPOTrainer, PPOConfig, {**PPO, "positive_lm_coef": 0.1, "positive_threshold": 0.5}),
    "PPO separate": (PPOTrainer, PPOConfig, {**PPO, "value_model": "separate", "value_warmup_steps": 1}),
    "PPO grpo": (PPOTrainer, PPOConfig, {**PPO, "kl_coef": None, "beta": 0.2, "loss_type": "grpo"}),
    "Hybrid alternate": (HybridTrainer, HybridConfig, {**HYBRID, "mode": "alternate"}),
    "Hybrid joint": (HybridTrainer, HybridConfig, {**HYBRID, "mode": "joint", "rl_loss": "cispo"}),
    "Hybrid gate": (HybridTrainer, HybridConfig, {**HYBRID, "mode": "gate", "rl_loss": "cispo", "gate": 0.5}),
    "Hybrid buffer": (HybridTrainer, HybridConfig, {**HYBRID, "mode": "buffer", "buffer_size": 6}),
}


@pytest.mark.parametrize("name", OURS)
def test_our_trainers_end_where_they_end_without_it(tiny, name):
    trainer_class, config_class, options = OURS[name]
    runs = [trained(trainer_class, tiny, config(config_class, lean_update=on, **options)) for on in (True, False)]
    assert distance(*runs, tiny) <= EXACT
    skipped, tokens = saved(runs[0])
    assert tokens > 0.1
    assert (skipped > 0.3) == (name.startswith("CISPO") or name in ("Hybrid joint", "Hybrid gate"))
    assert not any("lean/tokens_saved" in row for row in runs[1].state.log_history)


def test_rows_that_only_another_term_of_the_loss_reaches_stay(tiny):
    """The value loss, where it has a coefficient, and the language-model loss on positive examples."""
    first, second, third = (torch.eye(4, dtype=torch.long)[:, i : i + 1].expand(4, 2) for i in range(3))
    rows = {"completion_mask": torch.ones(4, 2), "value_mask": second, "positive_mask": third}
    for coefficient, expected in ((0.1, [True, True, True, False]), (0.0, [True, False, True, False])):
        args = config(PPOConfig, num_generations=1, vf_coef=coefficient)
        trainer = make_trainer(PPOTrainer, tiny, args, train_dataset=RAGGED)
        assert trainer._rows_with_gradient({**rows, "advantages": first.float()}).tolist() == expected


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_a_rollout_without_any_gradient_takes_the_same_steps(tiny, optim):
    """Momentum goes on moving the weights, as it does in the plain trainer."""

    def at_first(completions, trainer_state, **columns):
        return (letters if trainer_state.global_step < 4 else nothing)(completions)

    options = {"loss_type": "dapo", "optim": optim, "learning_rate": 1e-2, "max_steps": 8, "weight_decay": 0.1}
    lean, plain = pair(tiny, options, reward_funcs=at_first)
    assert distance(lean, plain, tiny) <= EXACT
    assert lean.state.log_history[5]["lean/rows_skipped"] == 0.75  # one row for each of the three micro-batches


def test_rows_of_which_no_token_counts_are_skipped(tiny):
    def rollout(prompts, trainer):
        output = fixed_rollout(prompts, trainer)
        output["env_mask"] = [[1, 0] * (len(ids) // 2) + [1] * (len(ids) % 2) for ids in output["completion_ids"]]
        output["env_mask"][1] = [0] * len(output["completion_ids"][1])
        for ids in output["completion_ids"][::3]:
            ids[-1] = 5  # no end of sequence: truncated
        return output

    options = {"loss_type": "grpo", "beta": 0.1, "mask_truncated_completions": True}
    lean, plain = pair(tiny, options, rollout_func=rollout)
    assert distance(lean, plain, tiny) <= EXACT
    assert saved(lean)[0] == pytest.approx(9 / 24)


def test_prompts_of_a_model_with_learned_positions_keep_their_padding(tmp_path):
    """TRL gives no positions, so those of GPT-2 count from the first column, padding included."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    sizes = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), attn_pdrop=0.0, **sizes))
    torch.nn.init.normal_(model.transformer.wpe.weight)  # positions count from the beginning
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = {"loss_type": "cispo", "epsilon_high": 5.0}
    lean, plain = pair(str(tmp_path), options)
    assert distance(lean, plain, str(tmp_path)) <= EXACT
    assert not lean._cuts_prompts
    assert saved(lean)[1] > 0.5


def test_a_run_resumed_in_the_middle_of_a_rollout_ends_where_a_plain_unbroken_one_ends(tiny):
    options = {"num_iterations": 3, "max_steps": 8}

    whole = trained(CISPOTrainer, tiny, config(CISPOConfig, lean_update=False, **options))
    broken = trained(CISPOTrainer, tiny, config(CISPOConfig, save_strategy="steps", save_steps=3, **options))
    data = {"rollout_func": fixed_rollout, "reward_funcs": flat, "train_dataset": RAGGED}
    resumed = make_trainer(CISPOTrainer, tiny, config(CISPOConfig, **options), **data)
    resumed.train(resume_from_checkpoint=f"{broken.args.output_dir}/checkpoint-3")
    assert distance(resumed, whole, tiny) <= EXACT


class Counting(Lean):
    """Counts the tokens that the loss's forwards get, padding included, and their rows."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shapes = []

    def _compute_loss(self, model, inputs):
        self.shapes.append((*loss_mask(inputs).shape, inputs["prompt_ids"].size(1)))
        return super()._compute_loss(model, inputs)


def test_the_metrics_are_what_the_forwards_no_longer_see(tiny):
    options = {"loss_type": "grpo", "logging_steps": 6}
    runs = [trained(Counting, tiny, config(GRPOConfig, **options)) for Counting.lean_update in (True, False)]
    lean, plain = runs
    lean_rows, plain_rows = (sum(s[0] for s in run.shapes) for run in runs)
    lean_tokens, plain_tokens = (sum(s[0] * (s[1] + s[2]) for s in run.shapes) for run in runs)
    assert len(lean.shapes) == len(plain.shapes) == 18
    assert saved(lean)[0] == pytest.approx(1 - lean_rows / plain_rows)
    assert saved(lean)[1] == pytest.approx(1 - lean_tokens / plain_tokens, abs=0.02)  # a mean of shares


def test_log_probabilities_of_a_rollout_come_back_in_their_places(tiny):
    """Sorted by length and cut, and in as many forwards as TRL runs."""
    args = config(PPOConfig, num_generations=1, max_steps=1)
    trainer = make_trainer(PPOTrainer, tiny, args, train_dataset=RAGGED)
    torch.nn.init.normal_(trainer.value_function.head.weight)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 98, (7, 30), generator=generator)
    attention = torch.ones_like(ids)
    for row, (left, right) in enumerate([(9, 1), (0, 19), (5, 12), (3, 0), (9, 18), (1, 7), (8, 8)]):
        attention[row, :left], attention[row, 30 - right :] = 0, 0
    widths, answers = [], []
    trainer.model.register_forward_pre_hook(lambda m, a, k: widths.append(k["input_ids"].size(1)), with_kwargs=True)
    for lean in (True, False):
        trainer.__dict__["_is_lean"] = lean
        trainer._wants_values = True
        with torch.no_grad():
            logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, attention, 20, 2, compute_entropy=True
            )
        answers.append((logps, entropies, trainer._forward[1] * attention[:, 10:]))
    assert widths[4:] == [30] * 4
    assert widths[:4] == sorted(widths[:4], reverse=True)
    assert widths[3] < 20
    for ours, plain in zip(*answers, strict=True):
        assert plain.abs().sum() > 1
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_two_processes_end_where_two_plain_ones_end(tiny, tmp_path):
    """Also where one of them has no gradient at all, and TRL gathers a metric for each row."""
    result = tmp_path / "result.json"
    on_two_processes("tests.trainers.lean_on_processes", tiny, str(result))
    found = json.loads(result.read_text())
    assert set(found) == {"CISPO", "grpo", "dapo-kl", "one has nothing", "all have nothing", "PPO", "Hybrid gate"}
    for name, (apart, skipped, tokens) in found.items():
        assert apart <= EXACT, name
        assert tokens > 0.2, name
        assert (skipped > 0.2) == (name not in ("dapo-kl", "PPO", "one has nothing")), name


def test_it_can_be_turned_off(tiny):
    class Off(Lean):
        lean_update = False

    off = trained(Off, tiny, config(GRPOConfig, loss_type="dapo", max_steps=3))
    plain = trained(GRPOTrainer, tiny, config(GRPOConfig, loss_type="dapo", max_steps=3))
    assert torch.equal(weights(off.model), weights(plain.model))
    assert not any("lean/tokens_saved" in row for row in off.state.log_history)


def test_rows_with_images_and_positions_that_depend_on_the_batch_are_left_alone(tiny, caplog):
    trainer = make_trainer(Lean, tiny, config(GRPOConfig, loss_type="dapo"))
    rows = {
        "prompt_ids": torch.ones(4, 3, dtype=torch.long),
        "prompt_mask": torch.ones(4, 3, dtype=torch.long),
        "completion_ids": torch.ones(4, 5, dtype=torch.long),
        "completion_mask": torch.tensor([[1, 1, 0, 0, 0]] * 4),
        "advantages": torch.zeros(4),
    }
    with_images = [{**rows, "pixel_values": torch.zeros(9, 3)}] * 2
    assert trainer._lean_micro_batches(with_images) is with_images
    assert [each["completion_ids"].shape for each in trainer._lean_micro_batches([rows] * 2)] == [(1, 2)] * 2
    model = load(tiny)
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not make_trainer(Lean, tiny, config(GRPOConfig, loss_type="dapo"), model=model)._is_lean
    messages = " ".join(record.message for record in caplog.records)
    assert "lean_update does nothing for rows with images" in messages
    assert "positions depend on the longest row" in messages
