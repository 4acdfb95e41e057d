"""Accelerate configs for the strategies: `accelerate_configs/` is written by these, and so is what `pick` chooses."""

import json
from typing import Any

from trl_ext.scaling.memory import Cluster

_COMMENTS = {
    "single": "Nothing is shared.",
    "ddp": "DDP: every GPU has the whole model.",
    "zero2": "DeepSpeed ZeRO-2: weights on every GPU, gradients and optimizer in parts.",
    "zero3": "DeepSpeed ZeRO-3: weights too in parts.",
    "zero3_hierarchical": "DeepSpeed ZeRO-3 with a second copy of the weights in each node (ZeRO++ hpZ).",
    "zero3_offload": "DeepSpeed ZeRO-3, weights and optimizer in main memory.",
    "fsdp2": "FSDP2: weights, gradients and optimizer in parts.",
}


def accelerate_config(strategy: str, cluster: Cluster) -> dict[str, Any]:
    """The config of `accelerate launch` for one of `memory.STRATEGIES`, in bfloat16."""
    config: dict[str, Any] = {"compute_environment": "LOCAL_MACHINE"}
    if strategy == "single":
        config["distributed_type"] = "NO"
    elif strategy == "ddp":
        config["distributed_type"] = "MULTI_GPU"
    elif strategy == "fsdp2":
        config |= {"distributed_type": "FSDP", "fsdp_config": _fsdp2()}
    else:
        config |= {"distributed_type": "DEEPSPEED", "deepspeed_config": _deepspeed(strategy, cluster)}
    if strategy != "zero3_hierarchical":  # whose file has it: Accelerate refuses to be told twice
        config["mixed_precision"] = "bf16"
    config |= {"num_machines": cluster.nodes, "num_processes": cluster.gpus}
    return config


def as_yaml(strategy: str, cluster: Cluster) -> str:
    """The file, with a line that says what it is."""
    import yaml

    gpus = "1 GPU" if cluster.gpus_per_node == 1 else f"{cluster.gpus_per_node} GPUs"
    size = gpus if cluster.nodes == 1 else f"{cluster.nodes} nodes with {gpus} each"
    text: str = yaml.safe_dump(accelerate_config(strategy, cluster), sort_keys=False, width=1000)
    return f"# {size}. {_COMMENTS[strategy]}\n{text}"


def _deepspeed(strategy: str, cluster: Cluster) -> dict[str, Any]:
    launcher = {"deepspeed_multinode_launcher": "standard"} if cluster.nodes > 1 else {}
    if strategy == "zero2":
        return {"zero_stage": 2, "offload_optimizer_device": "none", "offload_param_device": "none", **launcher}
    if strategy == "zero3_hierarchical":
        return {"deepspeed_config_file": json.dumps(hierarchical(cluster)), "zero3_init_flag": True, **launcher}
    device = "cpu" if strategy == "zero3_offload" else "none"
    return {
        "zero_stage": 3,
        "zero3_init_flag": True,
        "zero3_save_16bit_model": True,
        "offload_optimizer_device": device,
        "offload_param_device": device,
        **launcher,
    }


def hierarchical(cluster: Cluster) -> dict[str, Any]:
    """DeepSpeed's own config, which alone has `zero_hpz_partition_size`. Accelerate takes it as text where it wants a
    file, so that it need not be found on every node; "auto" is filled in from the arguments of the training."""
    return {
        "bf16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": 3,
            "zero_hpz_partition_size": cluster.gpus_per_node,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


def _fsdp2() -> dict[str, Any]:
    return {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # of the classes that the model itself names
        "fsdp_reshard_after_forward": True,
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": False,
        "fsdp_state_dict_type": "FULL_STATE_DICT",  # checkpoints that AutoModelForCausalLM loads
        "fsdp_activation_checkpointing": False,  # TRL's gradient_checkpointing does it
    }
