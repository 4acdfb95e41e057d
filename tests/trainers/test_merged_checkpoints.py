import os
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.trainers.test_hybrid_trainer import config, hybrid
from tests.trainers.training import load, parity
from trl_ext import HybridTrainer
from trl_ext.errors import ConfigError
from trl_ext.trainers import merged_checkpoints
from trl_ext.trainers.merged_checkpoints import MergedCheckpointsMixin
from trl_ext.trainers.merging import average, merged_state_dict

WEIGHT = 0.3
LORA = {"peft_config": LoraConfig(target_modules=["q_proj", "v_proj"])}
KINDS = pytest.mark.parametrize("options", [{}, LORA], ids=["full", "lora"])


class Watched(HybridTrainer):
    """Keeps what a plain merged model would be after each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.after = {}

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        policy = self.accelerator.unwrap_model(self.model)
        plain = {name: tensor.clone() for name, tensor in self._plain_weights(policy).items()}
        self.after[self.state.global_step] = plain
        super()._maybe_log_save_evaluate(*args, **kwargs)


def run(tiny, options, resume=None, **changes):
    changes = {"sft_steps": 2, "max_steps": 8, "merge_every": 1, "merge_average": WEIGHT, **changes}
    trainer = hybrid(tiny, config(**changes), trainer_class=Watched, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def merged(trainer, step):
    model = AutoModelForCausalLM.from_pretrained(f"{trainer.args.output_dir}/merged-{step}")
    return dict(model.named_parameters())


@KINDS
def test_merged_checkpoints_are_plain_models(tiny, options):
    trainer = run(tiny, options, merge_every=2, max_steps=4, merge_average=None)
    assert sorted(f for f in os.listdir(trainer.args.output_dir) if f.startswith("merged")) == ["merged-2", "merged-4"]
    folder = f"{trainer.args.output_dir}/merged-4"
    plain, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.arange(3, 20).unsqueeze(0)
    trainer.model.eval()
    torch.testing.assert_close(plain(ids).logits, trainer.model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    if options:
        assert any("lora_" in name for name, _ in trainer.model.named_parameters())  # training goes on as before


def test_merging_leaves_every_weight_as_it_was(tiny):
    policy = run(tiny, LORA, max_steps=3, merge_every=100).model
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    merged_state_dict(policy)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


@KINDS
def test_the_average_is_that_of_the_last_weights_of_both_phases(tiny, options):
    """Two steps on demonstrations, two on rewards, and so on."""
    trainer = run(tiny, options)
    for step, (sft, rl) in {3: (2, 3), 4: (2, 4), 5: (5, 4), 6: (6, 4), 7: (6, 7), 8: (6, 8)}.items():
        of_sft, of_rl = trainer.after[sft], trainer.after[rl]
        for name, tensor in merged(trainer, step).items():
            assert torch.equal(tensor, (1 - WEIGHT) * of_sft[name] + WEIGHT * of_rl[name]), (step, name)
    different = [name for name, tensor in trainer.after[6].items() if not torch.equal(tensor, trainer.after[8][name])]
    assert len(different) >= 4
    # with no phase behind it, the model as it is
    assert all(torch.equal(tensor, trainer.after[2][name]) for name, tensor in merged(trainer, 2).items())


@KINDS
@pytest.mark.parametrize("stop", [3, 4], ids=["within a phase", "between two"])
def test_the_average_survives_a_resume(tiny, options, stop):
    whole = run(tiny, options, save_strategy="steps", save_steps=stop, max_steps=6)
    resumed = run(tiny, options, resume=f"{whole.args.output_dir}/checkpoint-{stop}", max_steps=6)
    for step in (stop + 1, 6):
        expected = merged(whole, step)
        for name, tensor in merged(resumed, step).items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


def test_averaging_does_not_change_the_training(tiny):
    averaged, plain = run(tiny, LORA), run(tiny, LORA, merge_every=None, merge_average=None)
    assert all(torch.equal(tensor, plain.after[8][name]) for name, tensor in averaged.after[8].items())


@pytest.mark.parametrize(
    ("zero3", "fsdp", "quantized", "options", "message"),
    [
        (True, False, False, {"merge_average": 0.5}, "merge_average: not under ZeRO-3 or FSDP"),
        (False, True, False, {"merge_average": 0.5}, "merge_average: not under ZeRO-3 or FSDP"),
        (False, True, False, {}, "merge_every: adapters are not merged under FSDP"),
        (False, False, True, {}, "merge_every: adapters are not merged into quantized weights"),
    ],
)
def test_what_cannot_be_merged_is_refused(tiny, monkeypatch, zero3, fsdp, quantized, options, message):
    backend = SimpleNamespace(is_zero3=zero3, is_fsdp=fsdp)
    monkeypatch.setattr(merged_checkpoints, "DistributedBackend", lambda accelerator: backend)
    model = load(tiny)
    monkeypatch.setattr(type(model), "is_quantized", quantized, raising=False)
    trainer = SimpleNamespace(
        model=get_peft_model(model, *LORA.values()), args=config(merge_every=1, **options), accelerator=None
    )
    with pytest.raises(ConfigError, match=message):
        MergedCheckpointsMixin._check_merging(trainer)


def test_zero_3_needs_to_gather_a_full_policy(tiny, monkeypatch):
    backend = SimpleNamespace(is_zero3=True, is_fsdp=False)
    monkeypatch.setattr(merged_checkpoints, "DistributedBackend", lambda accelerator: backend)
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 3}})
    trainer = SimpleNamespace(model=load(tiny), args=config(merge_every=1))
    trainer.accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    with pytest.raises(ConfigError, match="under ZeRO-3 it needs stage3_gather_16bit_weights_on_model_save"):
        MergedCheckpointsMixin._check_merging(trainer)


def test_phases_that_the_buffer_makes_are_averaged_too(tiny):
    options = {"mode": "buffer", "num_generations": 2, "num_ppo_epochs": 1, "buffer_size": 4, "gate": 0.5}
    trainer = run(tiny, {"reward_funcs": parity}, **options)
    kinds = [row["phase/rl"] for row in trainer.state.log_history if "phase/rl" in row]
    first = kinds.index(0.0) + 1  # the step that is the first on demonstrations
    of_rl, of_sft = trainer.after[first - 1], trainer.after[first]
    for name, tensor in merged(trainer, first).items():
        assert torch.equal(tensor, (1 - WEIGHT) * of_sft[name] + WEIGHT * of_rl[name])


def test_an_average_is_rounded_once_and_keeps_what_is_no_float():
    a = {"w": torch.tensor([1.0, 2.0], dtype=torch.bfloat16), "i": torch.tensor([1])}
    b = {"w": torch.tensor([1.0078125, -2.0], dtype=torch.bfloat16), "i": torch.tensor([7])}
    mean = average(a, b, 0.75)
    assert mean["w"].tolist() == [torch.tensor(0.25 + 0.75 * 1.0078125).bfloat16().item(), -1.0]
    assert mean["i"].tolist() == [7]
