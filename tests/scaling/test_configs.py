"""Every file of accelerate_configs/ goes through Accelerate's own loader and launcher, up to the plugin it makes."""

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin, patch_environment

from tests.launching import FOLDER, launched, of_process
from trl_ext.builtin.tiny_model import tiny_model
from trl_ext.scaling.configs import accelerate_config, as_yaml
from trl_ext.scaling.memory import Cluster

# file: strategy, nodes, GPUs of a node
SHIPPED = {
    "gpu_1": ("single", 1, 1),
    "ddp_8gpu": ("ddp", 1, 8),
    "zero2_8gpu": ("zero2", 1, 8),
    "zero3_8gpu": ("zero3", 1, 8),
    "zero3_offload_1gpu": ("zero3_offload", 1, 1),
    "zero3_offload_8gpu": ("zero3_offload", 1, 8),
    "zero3_2x8gpu": ("zero3", 2, 8),
    "zero3_8x8gpu": ("zero3_hierarchical", 8, 8),
    "fsdp2_8gpu": ("fsdp2", 1, 8),
    "fsdp2_4x8gpu": ("fsdp2", 4, 8),
}
FILES = sorted(FOLDER.glob("*.yaml"))


def of_nodes(path):
    return ["--machine_rank", "1", "--main_process_ip", "127.0.0.1"] if "x8gpu" in path.name else []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_the_file_and_starts_as_many_processes_as_its_name_says(path):
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    nodes, processes = {name: (n, n * g) for name, (_, n, g) in SHIPPED.items()}.get(
        path.stem, (1, 2 if "2proc" in path.stem else 1)
    )
    assert (config.num_machines, config.num_processes) == (nodes, processes)
    args, _ = launched(path, *of_nodes(path))
    if processes > 1:
        assert int(args.nproc_per_node) == processes // nodes
    if nodes > 1:
        assert (args.nnodes, args.node_rank) == (str(nodes), 1)
        assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "127.0.0.1:29500")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_files_are_what_pick_writes(name):
    strategy, nodes, gpus = SHIPPED[name]
    assert (FOLDER / f"{name}.yaml").read_text() == as_yaml(strategy, Cluster(nodes, gpus))


def test_the_readme_names_every_file():
    text = (FOLDER / "README.md").read_text()
    assert [path.name for path in FILES if f"`{path.name}`" not in text] == []


@pytest.mark.parametrize(
    ("name", "stage", "offload", "hierarchy"),
    [
        ("zero2_8gpu", 2, "none", None),
        ("zero3_8gpu", 3, "none", None),
        ("zero3_2x8gpu", 3, "none", None),
        ("zero3_offload_1gpu", 3, "cpu", None),
        ("zero3_offload_8gpu", 3, "cpu", None),
        ("zero3_8x8gpu", 3, "none", 8),
        ("cpu_2proc_zero2", 2, "none", None),
        ("cpu_2proc_zero3", 3, "none", None),
    ],
)
def test_deepspeed_gets_what_the_file_says(name, stage, offload, hierarchy):
    deepspeed = pytest.importorskip("deepspeed")
    path = FOLDER / f"{name}.yaml"
    _, environment = launched(path, *of_nodes(path))
    with patch_environment(**of_process(environment)):
        plugin = DeepSpeedPlugin()
        plugin.set_mixed_precision(environment["ACCELERATE_MIXED_PRECISION"])
    assert plugin.zero_stage == stage
    assert plugin.hf_ds_config.is_zero3() == (stage == 3) == plugin.zero3_init_flag
    assert plugin.hf_ds_config.is_offload() == (offload == "cpu")
    if stage == 3:  # or save_model would write nothing
        assert plugin.get_value("zero_optimization.stage3_gather_16bit_weights_on_model_save") is True
    values = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    ours = {key: value for key, value in plugin.deepspeed_config.items() if key != "steps_per_print"}
    ours |= values | {"gradient_clipping": 1.0, "bf16": {"enabled": True}, "fp16": {"enabled": False}}
    zero = deepspeed.runtime.zero.config.DeepSpeedZeroConfig(**ours["zero_optimization"])  # refuses unknown keys
    assert zero.stage == stage
    assert zero.zero_hpz_partition_size == (hierarchy or 1)
    assert (zero.offload_optimizer.device if zero.offload_optimizer else "none") == offload
    assert (zero.offload_param.device if zero.offload_param else "none") == offload


@pytest.mark.parametrize("name", ["fsdp2_8gpu", "fsdp2_4x8gpu"])
def test_fsdp2_wraps_the_blocks_of_the_model(name):
    path = FOLDER / f"{name}.yaml"
    _, environment = launched(path, *of_nodes(path))
    with patch_environment(**of_process(environment)):
        plugin = FullyShardedDataParallelPlugin()
        model = tiny_model()
        plugin.set_auto_wrap_policy(model)
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert not plugin.activation_checkpointing
    assert [layer for layer in model.modules() if plugin.auto_wrap_policy(layer, False, 0)] == list(model.model.layers)


def test_every_strategy_is_bfloat16():
    for strategy, nodes, gpus in SHIPPED.values():
        config = accelerate_config(strategy, Cluster(nodes, gpus))
        told = config.get("mixed_precision") == "bf16"
        assert told != ("bf16" in config.get("deepspeed_config", {}).get("deepspeed_config_file", ""))
