"""The strategy with the least communication that fits, its config file and how to start it; or what would fit."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trl_ext.errors import ConfigError
from trl_ext.scaling.memory import STRATEGIES, Cluster, Estimate, Job, OptimizerState, estimates, lora_parameters

# Left free on each GPU: the CUDA context, NCCL's buffers, what the backward pass needs for a moment, fragmentation.
MARGIN = 0.1
GIB = 2**30
_PARTS = ("weights", "gradients", "optimizer", "reference", "critic", "buffers", "activations", "generation")
_MOST_GPUS = 4096
# accelerate.utils.deepspeed.map_pytorch_optim_to_deepspeed knows these as what they are
_STEPPED_IN_MAIN_MEMORY = ("adam", "adamw", "adamw_torch", "adamw_torch_fused", "adagrad", "lion", "lion_32bit")
_GROUP = 8  # GRPOConfig.num_generations, which must divide the completions that are generated at once
_TRAINERS_NAMES = {"adamw": "adamw_torch"}  # where make_optimizer's name is not one of TrainingArguments.optim


@dataclass(frozen=True)
class Choice:
    """The estimates, and the strategy that was chosen, None where nothing fits."""

    job: Job
    cluster: Cluster
    estimates: Mapping[str, Estimate]
    strategy: str | None


def pick(job: Job, cluster: Cluster, margin: float = MARGIN) -> Choice:
    """The strategy that sends the least (between nodes first), among those that leave a share of `margin` free.

    Raises:
        ConfigError: a number is out of range.
    """
    _check(job, cluster, margin)
    found = estimates(job, cluster)
    fitting = [e for e in found.values() if fits(e, cluster, margin)]
    fitting.sort(key=lambda e: (e.strategy == "zero3_offload", e.between, e.sent, STRATEGIES.index(e.strategy)))
    return Choice(job, cluster, found, fitting[0].strategy if fitting else None)


def fits(found: Estimate, cluster: Cluster, margin: float = MARGIN) -> bool:
    return found.total <= cluster.gpu_memory * (1.0 - margin)


def trained_parameters(job: Job) -> int:
    """Without the value function's."""
    return lora_parameters(job) if job.lora_rank else job.shape.parameters


def _check(job: Job, cluster: Cluster, margin: float) -> None:
    least_1 = {
        "gpus": cluster.gpus_per_node,
        "nodes": cluster.nodes,
        "batch": job.batch,
        "max_length": job.max_length,
        "steps_per_generation": job.steps_per_generation,
    }
    for name, value in least_1.items():
        if value < 1:
            raise ConfigError(f"--{name} = {value}: must be at least 1")
    if not cluster.gpu_memory > 0:
        raise ConfigError(f"--gpu_memory = {cluster.gpu_memory / GIB:g}: must be greater than 0 (GiB)")
    if not 0.0 <= margin < 1.0:
        raise ConfigError(f"--margin = {margin}: must be at least 0 and less than 1")


def table(choice: Choice, margin: float = MARGIN) -> str:
    """A row per strategy, GiB on a GPU."""
    header = (
        f"{'GiB per GPU':<20}" + "".join(f"{part:>12}" for part in _PARTS) + f"{'total':>9}{'sent':>9}{'node RAM':>10}"
    )
    lines = [header]
    for name, found in choice.estimates.items():
        parts = "".join(f"{getattr(found, part) / GIB:>12.2f}" for part in _PARTS)
        sent = f"{found.sent / 1e9:.1f} B"
        mark = "<-" if name == choice.strategy else "" if fits(found, choice.cluster, margin) else "does not fit"
        lines.append(f"{name:<20}{parts}{found.total / GIB:>9.2f}{sent:>9}{found.cpu / GIB:>10.0f}  {mark}".rstrip())
    lines.append(
        "total: activations and generation do not add up, the larger counts. sent: parameters per optimizer step of "
        "one micro-batch."
    )
    return "\n".join(lines)


def what_would_fit(job: Job, cluster: Cluster, margin: float = MARGIN) -> list[str]:
    """Changes after which something fits, each as a line: single ones, and such beside a vLLM server."""
    found = dict(_changes(job, cluster, margin))
    if job.generation != "vllm_server":
        server = replace(job, generation="vllm_server")
        found |= {
            f"{change} --generation vllm_server": s
            for change, s in _changes(server, cluster, margin)
            if change not in found
        }
    return [f"{change} ({strategy})" for change, strategy in found.items()]


def _changes(job: Job, cluster: Cluster, margin: float) -> Iterator[tuple[str, str]]:
    """Options, and the strategy that fits with them."""
    changed = {}
    if not job.lora_rank:
        changed["--lora"] = replace(job, lora_rank=16)
    if not job.gradient_checkpointing:
        changed["--gradient_checkpointing"] = replace(job, gradient_checkpointing=True)
    if job.dtype == "float32":
        changed["--dtype bfloat16"] = replace(job, dtype="bfloat16")
    if job.optimizer.linear > 2:
        changed["--optim adamw_8bit"] = replace(job, optimizer=OptimizerState(2.0, 8.0))
    if job.generation != "vllm_server":
        changed["--generation vllm_server"] = replace(job, generation="vllm_server")
    if job.batch > 1:
        changed["--batch 1"] = replace(job, batch=1)
    for change, smaller in changed.items():
        if strategy := pick(smaller, cluster, margin).strategy:
            yield change, strategy
    gpus, nodes = cluster.gpus_per_node, cluster.nodes
    while gpus * nodes < _MOST_GPUS:
        gpus, nodes = (gpus * 2, nodes) if gpus < 8 else (gpus, nodes * 2)
        if strategy := pick(job, replace(cluster, gpus_per_node=gpus, nodes=nodes), margin).strategy:
            yield f"--gpus {gpus}" + (f" --nodes {nodes}" if nodes > 1 else ""), strategy
            return


def launch_command(choice: Choice, path: str, model: str, trainer: str, optim: str) -> str:
    """How to start what was estimated: with several nodes, the line that each of them runs."""
    job, options = choice.job, [f"--model_name_or_path {shlex.quote(model)}"]
    options += [f"--per_device_train_batch_size {job.batch}", _optimizer_option(optim)]
    rows = choice.cluster.gpus * job.batch * job.steps_per_generation
    groups = [n for n in range(2, rows + 1) if rows % n == 0]
    if trainer in ("cispo", "grpo") and groups and _GROUP not in groups:
        options += [f"--num_generations {min(groups, key=lambda n: abs(n - _GROUP))}"]
    if job.steps_per_generation > 1:
        options += [f"--steps_per_generation {job.steps_per_generation}"]
    if job.lora_rank:
        options += [f"--use_peft true --lora_r {job.lora_rank} --lora_target_modules all-linear"]
    if job.critic == "separate":
        options += ["--value_model separate"]
    if job.reference != has_reference(trainer):
        options += ["--beta 0.04" if job.reference else "--kl_coef 0"]
    if job.dtype != "float32":
        options += [f"--dtype {job.dtype}"]
    if not job.gradient_checkpointing:
        options += ["--gradient_checkpointing false"]
    if job.generation != "transformers":
        options += [f"--use_vllm true --vllm_mode {job.generation.removeprefix('vllm_')}"]
    nodes = "" if choice.cluster.nodes == 1 else " --machine_rank $NODE_RANK --main_process_ip $MAIN_NODE"
    recipe = f"accelerate launch --config_file {shlex.quote(path)}{nodes} recipes/{trainer}.py"
    return f"{recipe} \\\n    {' '.join(options)}"


def has_reference(trainer: str) -> bool:
    """Whether its config has a KL penalty by default."""
    return trainer in ("ppo", "hybrid")


def _optimizer_option(name: str) -> str:
    """`--optim` where TrainingArguments know the optimizer, else that of our trainers."""
    from transformers.training_args import OptimizerNames

    name = _TRAINERS_NAMES.get(name, name)
    return f"--optim {name}" if name in {known.value for known in OptimizerNames} else f"--optimizer {name}"


def caution(choice: Choice, optim: str) -> str | None:
    """What the user would not expect of the choice."""
    if choice.strategy != "zero3_offload" or optim in _STEPPED_IN_MAIN_MEMORY:
        return None
    return (
        "note: with the optimizer in main memory Accelerate puts DeepSpeed's CPU Adam "
        f"in the place of --optim {optim}; adamw_torch keeps its kind"
    )


def optimizer_state(name: str) -> OptimizerState:
    """Bytes of state per parameter, found out by a step of the optimizer on a small matrix and a small embedding.

    Raises:
        ConfigError: there is no such optimizer.
        MissingExtraError: its package is not installed.
    """
    import torch
    from torch import nn

    from trl_ext.optim import make_optimizer

    model = nn.Sequential(nn.Embedding(256, 256), nn.Linear(256, 256, bias=False))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer(model, name)
    optimizer.step()
    embedding, linear = (_state_bytes(optimizer, module.weight) for module in model)
    return OptimizerState(linear=linear, embedding=embedding)


def _state_bytes(optimizer: Any, parameter: Any) -> float:
    import torch

    state = optimizer.state.get(parameter, {})
    tensors = [x for x in state.values() if isinstance(x, torch.Tensor)]
    return float(sum(x.numel() * x.element_size() for x in tensors) / parameter.numel())
