"""Estimates against DeepSpeed's own, against autograd's saved tensors, and against the tensors of a real step."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoConfig,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
    T5Config,
)

from tests.scaling.measured import llama, saved_bytes
from trl_ext.errors import ConfigError
from trl_ext.optim import make_optimizer
from trl_ext.scaling import memory
from trl_ext.scaling.memory import STRATEGIES, Cluster, Job, OptimizerState, block_activations, estimate
from trl_ext.scaling.pick import optimizer_state
from trl_ext.scaling.shape import shape_of

QWEN_7B = Qwen2Config(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)
CLUSTERS = [Cluster(1, 1), Cluster(1, 8), Cluster(4, 8)]


@pytest.fixture(scope="module")
def qwen():
    return shape_of(QWEN_7B)


def states(found):
    return found.weights + found.gradients + found.optimizer


def test_the_shape_is_counted_without_weights(qwen, tiny):
    assert qwen.parameters == 7_615_616_512  # as the model card of Qwen2.5-7B has it: 7.61 B
    assert (qwen.head, qwen.embeddings, qwen.layers, qwen.head_dim) == (152064 * 3584, 152064 * 3584, 28, 128)
    model = llama(layers=2)
    shape = shape_of(model.config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.block == sum(p.numel() for p in model.model.layers[0].parameters())
    tied = shape_of(AutoConfig.from_pretrained(tiny))
    assert tied.head == 0
    assert tied.trunk == tied.parameters


@pytest.mark.parametrize(
    ("config", "mlp"),
    [
        (GPT2Config(), 4 * 768),
        (GPT2Config(n_inner=1000), 1000),
        (OPTConfig(), 3072),
        (BloomConfig(hidden_size=64, n_layer=2), 256),
        (FalconConfig(hidden_size=142, ffn_hidden_size=300, num_hidden_layers=2), 300),
    ],
    ids=lambda x: x.model_type if hasattr(x, "model_type") else str(x),
)
def test_models_that_call_their_sizes_otherwise_have_a_shape_too(config, mlp):
    assert shape_of(config).intermediate_size == mlp


def test_the_layers_of_gpt2_take_adapters_as_peft_counts_them():
    from peft import LoraConfig, get_peft_model

    config = GPT2Config(n_embd=64, n_layer=2, n_head=4)
    peft = get_peft_model(GPT2LMHeadModel(config), LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=True))
    trained = sum(p.numel() for p in peft.parameters() if p.requires_grad)
    assert memory.lora_parameters(Job(shape_of(config), lora_rank=4)) == trained


def test_no_weight_is_made_however_large_it_is():
    experts = {"num_local_experts": 256, "hidden_size": 65536, "intermediate_size": 65536, "num_hidden_layers": 1}
    assert shape_of(MixtralConfig(**experts)).parameters > 3 * 256 * 65536**2  # 12 TB in float32


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (MambaConfig(num_hidden_layers=1), "MambaConfig has no attention heads"),
        (T5Config(), "no causal language model for T5Config"),
    ],
)
def test_what_has_no_such_shape_is_refused_in_a_short_line(config, said):
    with pytest.raises(ConfigError, match=said) as error:
        shape_of(config)
    assert len(str(error.value)) < 250


def test_a_lora_adapter_has_as_many_parameters_as_peft_gives_it():
    from peft import LoraConfig, get_peft_model

    model = llama(layers=2)
    job = Job(shape_of(model.config), lora_rank=4)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert memory.lora_parameters(job) == sum(p.numel() for p in peft.parameters() if p.requires_grad)


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda c: f"{c.nodes}x{c.gpus_per_node}")
def test_model_states_agree_with_deepspeeds_estimators(qwen, cluster):
    stage3 = pytest.importorskip("deepspeed.runtime.zero.stage3")
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    job, on = Job(qwen), {"num_gpus_per_node": cluster.gpus_per_node, "num_nodes": cluster.nodes}
    _, gpu = estimate_zero2_model_states_mem_needs(qwen.parameters, cpu_offload=False, **on)
    assert states(estimate(job, cluster, "zero2")) == pytest.approx(gpu, abs=2)
    needs = stage3.estimate_zero3_model_states_mem_needs
    _, gpu, _ = needs(qwen.parameters, qwen.largest_module, cpu_offload=False, **on)
    assert states(estimate(job, cluster, "zero3")) == pytest.approx(gpu, abs=2)
    cpu, gpu, _ = needs(qwen.parameters, qwen.largest_module, cpu_offload=True, cpu_offload_params=True, **on)
    offloaded = estimate(job, cluster, "zero3_offload")
    assert states(offloaded) == pytest.approx(gpu, abs=2)
    assert offloaded.cpu == pytest.approx(cpu, abs=2)


def test_the_buffers_are_deepspeeds_defaults():
    config = pytest.importorskip("deepspeed.runtime.zero.config")
    assert config.DeepSpeedZeroConfig(stage=2).reduce_bucket_size == memory.REDUCE_BUCKET
    assert config.DeepSpeedZeroConfig(stage=3).max_live_parameters == memory.MAX_LIVE_PARAMETERS


def test_the_tiles_of_the_fused_head_are_trls():
    from trl import GRPOConfig
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    assert (chunked_logprob.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE) == memory.HEAD_TILE
    assert GRPOConfig.vllm_gpu_memory_utilization == memory.VLLM_SHARE


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointing"])
@pytest.mark.parametrize("precision", ["bfloat16", "mixed"])
@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 192, "intermediate_size": 512, "num_key_value_heads": 2}])
def test_activations_are_what_autograd_saves(precision, checkpointing, sizes):
    """A block to the byte, the whole trunk to 5 percent (embedding, rotary table and last norm are not counted)."""
    dtype, mixed = torch.bfloat16 if precision == "bfloat16" else torch.float32, precision == "mixed"
    options = {"batch": 4, "length": 128, "autocast": mixed, "checkpointing": checkpointing}
    two, five = (saved_bytes(llama(layers, **sizes).to(dtype), **options) for layers in (2, 5))
    shape = shape_of(llama(5, **sizes).config)
    block, kept = block_activations(shape, 4, 128, mixed=mixed)
    expected = kept if checkpointing else block
    assert (five - two) / 3 == expected
    if not checkpointing:
        assert 5 * expected == pytest.approx(five, rel=0.05)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "lion_32bit", "sgd", "adafactor"])
def test_a_state_is_as_large_as_the_optimizer_makes_it(name):
    """Of a model that the probe does not have: what is measured on a small matrix holds for others."""
    if name.endswith("bit"):
        pytest.importorskip("bitsandbytes")
    model = llama(layers=1, vocab_size=400)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer(model, name)
    optimizer.step()
    measured = sum(
        x.numel() * x.element_size()
        for s in optimizer.state.values()
        for x in s.values()
        if isinstance(x, torch.Tensor)
    )
    job = Job(shape_of(model.config), optimizer=optimizer_state(name))
    assert estimate(job, Cluster(), "single").optimizer == pytest.approx(measured, rel=0.05, abs=2e4)


def test_a_real_step_on_one_process_takes_what_is_estimated():
    model = llama(layers=3)
    ids = torch.randint(3, 400, (2, 64))
    optimizer = make_optimizer(model, "adamw")
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    found = estimate(Job(shape_of(model.config)), Cluster(), "single")
    assert found.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert found.gradients == sum(p.grad.numel() * p.grad.element_size() for p in model.parameters())
    measured = sum(x.numel() * x.element_size() for s in optimizer.state.values() for x in s.values())
    assert found.optimizer == pytest.approx(measured, rel=1e-3)


@pytest.mark.full
@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointing"])
def test_a_step_of_a_model_of_the_size_of_smollm2_is_estimated_within_15_percent(checkpointing):
    """Weights, gradients, AdamW's state and what autograd keeps of the trunk under autocast: 135 M parameters."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = llama(layers=30, vocab_size=49152, tie_word_embeddings=True, **sizes)
    kept = saved_bytes(model, 2, 256, autocast=True, checkpointing=checkpointing)
    model.gradient_checkpointing_disable()
    ids = torch.randint(3, 400, (1, 16))
    optimizer = make_optimizer(model, "adamw")
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
    tensors += [x for state in optimizer.state.values() for x in state.values()]
    measured = kept + sum(x.numel() * x.element_size() for x in tensors)
    found = estimate(Job(shape_of(model.config)), Cluster(), "single")
    block, left = block_activations(shape_of(model.config), 2, 256, mixed=True)
    of_trunk = 30 * (left if checkpointing else block)
    assert of_trunk == pytest.approx(kept, rel=0.15)
    assert states(found) + of_trunk == pytest.approx(measured, rel=0.05)


def test_the_parts_follow_from_what_is_trained(qwen):
    job, eight = Job(qwen), Cluster(1, 8)
    for strategy in STRATEGIES:
        plain = estimate(job, eight, strategy)
        lora = estimate(replace(job, lora_rank=16, reference=True), eight, strategy)
        assert lora.reference == 0  # the model with its adapter switched off
        assert lora.total < plain.total
        assert plain.critic == plain.reference == 0
        separate = estimate(replace(job, critic="separate"), eight, strategy)
        if strategy != "zero3_offload":
            assert separate.critic == pytest.approx(states(plain), rel=0.35)
        assert separate.activations == 2 * plain.activations
        assert estimate(replace(job, critic="shared"), eight, strategy).total <= plain.total * 1.0001
        kept = estimate(replace(job, gradient_checkpointing=False), eight, strategy)
        assert kept.activations > 5 * plain.activations
    whole, parts = (estimate(replace(job, reference=True), eight, s).reference for s in ("zero2", "zero3"))
    assert whole == 2 * qwen.parameters == 8 * parts


def test_hierarchical_partitioning_has_a_copy_in_each_node_and_sends_less_between_them(qwen):
    cluster = Cluster(8, 8)
    plain, copied = (estimate(Job(qwen), cluster, name) for name in ("zero3", "zero3_hierarchical"))
    assert copied.weights - plain.weights == 2 * qwen.parameters / 8
    assert (plain.between, copied.between) == (3 * qwen.parameters, 2 * qwen.parameters)


def test_writing_completions_gathers_the_model_unless_a_server_does_it(qwen):
    job, eight = Job(qwen, batch=1, steps_per_generation=2), Cluster(1, 8, 80e9)
    cache = 2 * 2 * 2 * 28 * 4 * 128 * 4096  # keys and values of 2 rows in 28 layers, bfloat16
    assert estimate(job, eight, "zero2").generation == cache
    assert estimate(job, eight, "zero3").generation == cache + 2 * qwen.parameters
    assert estimate(replace(job, generation="vllm_server"), eight, "zero3").generation == 0
    assert estimate(replace(job, generation="vllm_colocate"), eight, "zero3").generation == 0.3 * 80e9


def test_the_fused_head_builds_no_logits(qwen):
    fused, logits = (estimate(Job(qwen, logits=x), Cluster(1, 8), "zero2").activations for x in (False, True))
    assert logits - fused > 4 * 4096 * 152064 * 12


def test_an_8_bit_optimizer_keeps_embeddings_in_32_bits(qwen):
    job = Job(qwen, optimizer=OptimizerState(2.0, 8.0))
    expected = 2 * (qwen.parameters - qwen.embeddings) + 8 * qwen.embeddings
    assert estimate(job, Cluster(), "single").optimizer == expected
