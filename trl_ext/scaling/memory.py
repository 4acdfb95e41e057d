"""How many bytes a GPU needs for a training run, part by part: arithmetic on the shape of a model.

The weights, gradients and states of the optimizer under ZeRO-2 and -3 are those of DeepSpeed's own estimators
(`estimate_zero2_model_states_mem_needs`, `estimate_zero3_model_states_mem_needs`). The activations are what autograd
saves in a Llama-like block with SDPA attention and a padding mask, counted operation by operation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trl_ext.scaling.shape import ModelShape

# DeepSpeed's defaults (`DeepSpeedZeroConfig`), in elements
REDUCE_BUCKET = 500_000_000
MAX_LIVE_PARAMETERS = 1_000_000_000
# Tiles of TRL's fused LM head (`trl.kernels.chunked_logprob`), tokens and vocabulary entries
HEAD_TILE = (4096, 32768)

STRATEGIES = ("single", "ddp", "zero2", "zero3_hierarchical", "zero3", "fsdp2", "zero3_offload")
GENERATION = ("transformers", "vllm_server", "vllm_colocate")
VLLM_SHARE = 0.3  # GRPOConfig.vllm_gpu_memory_utilization


@dataclass(frozen=True)
class OptimizerState:
    """Bytes of state for each parameter of a linear layer and of an embedding, if these are kept in float32."""

    linear: float = 8.0
    embedding: float = 8.0


@dataclass(frozen=True)
class Job:
    """What is trained. `batch` completions of `max_length` tokens (prompt included) are one micro-batch of a GPU.

    `critic` is "shared", "separate" or None; `logits`: the loss builds them, as that on demonstrations does.
    """

    shape: ModelShape
    batch: int = 4
    max_length: int = 4096
    optimizer: OptimizerState = OptimizerState()
    lora_rank: int = 0
    dtype: str = "float32"
    gradient_checkpointing: bool = True
    reference: bool = False
    critic: str | None = None
    logits: bool = False
    generation: str = "transformers"
    steps_per_generation: int = 1


@dataclass(frozen=True)
class Cluster:
    nodes: int = 1
    gpus_per_node: int = 1
    gpu_memory: float = 80e9

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Estimate:
    """Bytes on each GPU, but for `cpu`, which is main memory of a node.

    `sent` is how often the number of parameters a GPU sends or receives per optimizer step of one micro-batch, in the
    count of the ZeRO paper (arXiv 1910.02054, section 7: 2 for DDP and ZeRO-2, 3 for ZeRO-3), as elements; `between`
    is the part of it that crosses nodes.
    """

    strategy: str
    weights: float
    gradients: float
    optimizer: float
    reference: float
    critic: float
    buffers: float
    activations: float
    generation: float
    cpu: float
    sent: float
    between: float

    @property
    def total(self) -> float:
        """Activations and generation are not there at the same time."""
        kept = self.weights + self.gradients + self.optimizer + self.reference + self.critic + self.buffers
        return kept + max(self.activations, self.generation)


def estimate(job: Job, cluster: Cluster, strategy: str) -> Estimate:
    """The bytes of `job` under one of `STRATEGIES`."""
    shape = job.shape
    adapter = lora_parameters(job)
    trained = (adapter or shape.parameters) + (shape.hidden_size + 1 if job.critic == "shared" else 0)
    trunk = shape.trunk if job.critic == "separate" else 0
    # what a critic gathers for a moment is not there at the same time as what the policy gathers
    critic = _states(job, cluster, strategy, trunk, trunk, replace(shape, largest_module=0)) if trunk else {}
    sent, between = _communication(cluster, strategy, shape.parameters + trunk, trained + trunk)
    return Estimate(
        strategy=strategy,
        **_states(job, cluster, strategy, shape.parameters + adapter, trained, shape),
        reference=_reference(job, cluster, strategy) if job.reference and not adapter else 0.0,
        critic=sum(critic.values()),
        buffers=_buffers(job, cluster, strategy, shape.parameters + trunk, trained + trunk),
        activations=activations(job, strategy) * (2 if trunk else 1),
        generation=_generation(job, cluster, strategy),
        cpu=_cpu(cluster, strategy, shape.parameters + trunk, trained + trunk),
        sent=sent,
        between=between,
    )


def lora_parameters(job: Job) -> int:
    return job.lora_rank * job.shape.adapter_sizes


def _weight_bytes(job: Job, strategy: str) -> int:
    """DeepSpeed trains a copy in bfloat16 whatever the model was loaded in; TRL loads it in float32."""
    return 2 if strategy.startswith("zero") or job.dtype == "bfloat16" else 4


def _optimizer_bytes(job: Job, trained: int, shape: ModelShape) -> float:
    embeddings = 0 if job.lora_rank else min(shape.embeddings, trained)
    return job.optimizer.linear * (trained - embeddings) + job.optimizer.embedding * embeddings


def _states(
    job: Job, cluster: Cluster, strategy: str, weights: int, trained: int, shape: ModelShape
) -> dict[str, float]:
    n, of_optimizer = cluster.gpus, _optimizer_bytes(job, trained, shape)
    size = _weight_bytes(job, strategy)
    if strategy in ("single", "ddp"):
        scale = size / 4  # torch's optimizers keep their state in the dtype of the parameter; 8-bit ones do not
        of_optimizer *= scale if job.optimizer.linear >= 4 else 1
        return {"weights": size * weights, "gradients": size * trained, "optimizer": of_optimizer}
    if strategy == "fsdp2":  # the shards are float32, and two blocks and the root at a time are gathered in bfloat16
        root = shape.embeddings + shape.head
        return {
            "weights": 4 * weights / n + 2 * (2 * shape.block + root),
            "gradients": 4 * trained / n + 2 * shape.block,
            "optimizer": of_optimizer / n,
        }
    if strategy == "zero2":
        return {
            "weights": 2 * weights,
            "gradients": (2 + 4) * trained / n,
            "optimizer": (4 * trained + of_optimizer) / n,
        }
    gathered = 4 * shape.largest_module
    if strategy == "zero3_offload":
        return {"weights": gathered, "gradients": 0.0, "optimizer": 0.0}
    second = 2 * weights / cluster.gpus_per_node if strategy == "zero3_hierarchical" else 0.0
    return {
        "weights": 2 * weights / n + gathered + second,
        "gradients": 4 * trained / n,
        "optimizer": (4 * trained + of_optimizer) / n,
    }


def _reference(job: Job, cluster: Cluster, strategy: str) -> float:
    """TRL shards it where the policy is (ZeRO-3, FSDP); under ZeRO-2 every GPU has it whole."""
    size = _weight_bytes(job, strategy) * job.shape.parameters
    if strategy == "zero3_offload":
        return 0.0
    if strategy.startswith("zero3") or strategy == "fsdp2":
        return size / cluster.gpus
    return size


def _buffers(job: Job, cluster: Cluster, strategy: str, parameters: int, trained: int) -> float:
    if strategy == "ddp":
        return _weight_bytes(job, strategy) * trained  # the reducer's buckets hold a second copy of the gradients
    if strategy == "zero2":
        return 2 * min(REDUCE_BUCKET, trained)
    if strategy.startswith("zero3"):
        return 2 * (min(REDUCE_BUCKET, trained) + min(MAX_LIVE_PARAMETERS, parameters) * (cluster.gpus > 1))
    return 0.0


def _cpu(cluster: Cluster, strategy: str, parameters: int, trained: int) -> float:
    if strategy != "zero3_offload":
        return 0.0
    return (2 * parameters + 16 * trained) / cluster.nodes * 1.5  # DeepSpeed's additional_buffer_factor


def _communication(cluster: Cluster, strategy: str, parameters: int, trained: int) -> tuple[float, float]:
    if cluster.gpus == 1:
        return 0.0, 0.0
    crosses = cluster.nodes > 1
    if strategy in ("ddp", "zero2"):
        return 2.0 * trained, 2.0 * trained * crosses
    sent = 2.0 * parameters + trained
    if strategy == "zero3_hierarchical":  # the backward pass gathers from the copy inside the node
        return sent, (parameters + trained) * crosses
    return sent, sent * crosses


def _generation(job: Job, cluster: Cluster, strategy: str) -> float:
    """Keys and values of all rows; and the whole model, which TRL gathers for it under ZeRO-3 and FSDP."""
    if job.generation == "vllm_server":
        return 0.0
    shape = job.shape
    gathers = 2 * shape.parameters if strategy.startswith(("zero3", "fsdp")) and cluster.gpus > 1 else 0
    if job.generation == "vllm_colocate":
        return VLLM_SHARE * cluster.gpu_memory
    rows = job.batch * job.steps_per_generation
    return gathers + 2 * 2 * shape.layers * shape.kv_heads * shape.head_dim * rows * job.max_length


def activations(job: Job, strategy: str) -> float:
    """What a forward pass of one micro-batch keeps for the backward pass, at the moment of the most."""
    mixed = _weight_bytes(job, strategy) == 4
    block, kept = block_activations(job.shape, job.batch, job.max_length, mixed=mixed)
    head = head_activations(job, mixed=mixed)
    if job.gradient_checkpointing:
        return job.shape.layers * kept + max(block, head)
    return job.shape.layers * block + head


def block_activations(shape: ModelShape, batch: int, length: int, *, mixed: bool, size: int = 2) -> tuple[float, float]:
    """Bytes that autograd saves in one block, and bytes that are left of it with gradient checkpointing (its input).

    `size` is that of an element in the matrix products; with `mixed` the residual stream and the norms are float32
    under autocast, and each product has its own cast of its weights.
    """
    h, m = shape.hidden_size, shape.intermediate_size
    stream = 4 if mixed else size
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # two RMSNorms: the input in float32, its inverse root, what is multiplied with the weight, and the result, which
    # the five products that begin with it share, but under autocast each has a cast of its own
    norms = 2 * (4 * h + 4 + stream * h) + (5 if mixed else 2) * size * h
    # q, and k and v once per query head; the output and its log-sum-exp; the mask as numbers
    attention = size * 4 * q + 4 * shape.heads + size * length
    mlp = size * 4 * m  # gate, its SiLU, up and their product
    cast = size * (2 * h * q + 2 * h * kv + 3 * h * m) if mixed else 0
    return batch * length * (norms + attention + mlp) + cast, batch * length * stream * h


def head_activations(job: Job, *, mixed: bool) -> float:
    """The fused head keeps no logits: its hidden states, their gradients and the head's in float32, and two tiles."""
    shape, tokens = job.shape, job.batch * job.max_length
    if job.logits:  # SFT steps: logits, a float32 copy, its softmax and its gradient
        return tokens * shape.vocab_size * (2 + 4 + 4 + 4)
    tile = min(tokens, HEAD_TILE[0]) * min(shape.vocab_size, HEAD_TILE[1])
    of_weight = 0 if job.lora_rank else 4 * shape.vocab_size * shape.hidden_size
    return tokens * shape.hidden_size * (2 + 4) + of_weight + 2 * 4 * tile


def estimates(job: Job, cluster: Cluster) -> Mapping[str, Estimate]:
    """Strategy -> estimate, for those that make sense on the cluster.

    Hierarchical partitioning does for one model: DeepSpeed 0.19.8 fails at a second (a reference, a critic), for which
    `deepspeed.zero.Init` would make its process group again.
    """
    one_model = job.critic != "separate" and (bool(job.lora_rank) or not job.reference)
    without = {"single"}
    if not (one_model and cluster.nodes > 1 and cluster.gpus_per_node > 1):
        without.add("zero3_hierarchical")
    names = ("single", "zero3_offload") if cluster.gpus == 1 else [name for name in STRATEGIES if name not in without]
    return {name: estimate(job, cluster, name) for name in names}
