"""What of the comparison runs without a GPU: the run that is measured, its estimate and the line that is printed."""

from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import memory
from benchmarks.memory import full_length, job_of, line, make_trainer, strategy_of
from tests.trainers.training import CPU
from trl_ext.builtin.tiny_model import tiny_model
from trl_ext.scaling.memory import Cluster, estimate

ARGS = Namespace(batch=4, max_length=24, optim="adamw_torch", lora=False, gradient_checkpointing=False, steps=2)


def test_the_run_that_is_measured_trains_on_completions_of_full_length():
    options = {key: CPU[key] for key in ("use_cpu", "bf16", "dataloader_pin_memory", "disable_tqdm")}
    trainer = make_trainer(tiny_model().config, ARGS, **options)
    before = trainer.model.model.embed_tokens.weight.clone()
    trainer.train()
    assert (trainer.model.model.embed_tokens.weight != before).any()
    rows = full_length(["x"] * 4, trainer)
    assert [len(p) + len(c) for p, c in zip(rows["prompt_ids"], rows["completion_ids"], strict=True)] == [24] * 4


def test_the_estimate_is_of_that_run():
    job = job_of(tiny_model().config, ARGS)
    assert (job.batch, job.max_length, job.lora_rank, job.gradient_checkpointing) == (4, 24, 0, False)
    found = estimate(job, Cluster(), "single")
    assert found.generation == 0
    assert found.weights == 4 * sum(p.numel() for p in tiny_model().parameters())
    assert "error +0.0%, within 15%" in line(found, found.total)
    assert "error -50.0%, beyond 15%" in line(found, 2 * found.total)


@pytest.mark.parametrize(
    ("kind", "plugin", "strategy"),
    [
        ("NO", None, "single"),
        ("MULTI_GPU", None, "ddp"),
        ("FSDP", None, "fsdp2"),
        ("DEEPSPEED", {"stage": 2}, "zero2"),
        ("DEEPSPEED", {"stage": 3}, "zero3"),
        ("DEEPSPEED", {"stage": 3, "offload": True}, "zero3_offload"),
        ("DEEPSPEED", {"stage": 3, "hpz": 8}, "zero3_hierarchical"),
    ],
)
def test_the_strategy_is_read_off_the_state_of_accelerate(kind, plugin, strategy):
    asked = plugin or {}
    deepspeed = SimpleNamespace(
        zero_stage=asked.get("stage"),
        hf_ds_config=SimpleNamespace(is_offload=lambda: asked.get("offload", False)),
        get_value=lambda key, default: asked.get("hpz", default),
    )
    state = SimpleNamespace(distributed_type=SimpleNamespace(value=kind), deepspeed_plugin=deepspeed)
    assert strategy_of(state) == strategy


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="there is no GPU here"):
        memory.main(["--model", "builtin:tiny"])
