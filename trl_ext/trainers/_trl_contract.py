"""Every private TRL name that trl-ext overrides, calls or reads: listed once, checked before anything hangs on it."""

import importlib.util
import inspect

import trl
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from trl import GRPOTrainer

from trl_ext.errors import TrlContractError

SUPPORTED = SpecifierSet(">=1.16,<2")
TESTED = ("1.16.0",)

# Method of `GRPOTrainer` -> the parameters that it must start with. More may follow: they are passed through.
HOOKS: dict[str, tuple[str, ...]] = {
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_compute_loss": ("self", "model", "inputs"),
    "_finalize_training": ("self", "trial"),
    "_generate_and_score_completions": ("self", "inputs"),
    "_generate_single_turn": ("self", "prompt_ids", "images", "multimodal_fields", "num_generations"),
    "_get_per_token_logps_and_entropies": ("self", "model", "input_ids", "attention_mask", "logits_to_keep"),
    "_get_train_sampler": ("self", "dataset"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_maybe_log_save_evaluate": ("self", "tr_loss"),
    "_prepare_inputs": ("self", "generation_batch"),
    "_run_epoch": ("self", "model", "epoch"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_tokenize_prompts": ("self", "prompts"),
    "get_batch_samples": ("self", "epoch_iterator", "num_batches", "device"),
}

# Module -> its constant that `head_tiles.py` sets for a while.
CONSTANTS = {
    "trl.kernels.chunked_logprob": "TOKEN_CHUNK_SIZE",
    "trl.trainer.utils": "_CHUNKED_LOGPROB_CHUNK_SIZE",
}

# Set by `GRPOTrainer.__init__` and read by our subclasses, or by `trl_ext.agents`.
ATTRIBUTES = (
    "_buffered_inputs",
    "_entropy_bonus_enabled",
    "_logs",
    "_metrics",
    "_step",
    "aux_loss_enabled",
    "beta",
    "chat_template",
    "chat_template_kwargs",
    "eos_token_ids",
    "epsilon_high",
    "importance_sampling_level",
    "loss_type",
    "max_completion_length",
    "num_generations",
    "num_generations_eval",
    "num_iterations",
    "pad_to_multiple_of",
    "ref_model",
    "reward_func_names",
    "reward_funcs",
    "reward_weights",
    "rollout_func",
    "temperature",
    "top_entropy_quantile",
    "use_transformers_continuous_batching",
    "use_vllm",
)

# What the forward of a vision-language model takes besides tokens: names in the outputs of a rollout.
MULTIMODAL = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


def check_trl(trainer_class: type = GRPOTrainer, version: str = trl.__version__) -> None:
    """Refuse a TRL that is out of range or whose hooks changed.

    Raises:
        TrlContractError: names the hook or the range, the TRL found, and the TRLs tested.
    """
    found = f"found TRL {version}, tested with {', '.join(TESTED)}: pip install 'trl=={TESTED[-1]}'"
    if not SUPPORTED.contains(Version(version), prereleases=True):
        raise TrlContractError(f"trl-ext needs trl{SUPPORTED}; {found}")
    for module, constant in CONSTANTS.items():
        if importlib.util.find_spec(module) is None or not hasattr(importlib.import_module(module), constant):
            raise TrlContractError(f"{module}.{constant} is gone; {found}")
    for name, expected in HOOKS.items():
        method = getattr(trainer_class, name, None)
        if method is None:
            raise TrlContractError(f"GRPOTrainer.{name} is gone; {found}")
        parameters = tuple(inspect.signature(method).parameters)
        if parameters[: len(expected)] != expected:
            raise TrlContractError(
                f"GRPOTrainer.{name} takes ({', '.join(parameters)}), expected ({', '.join(expected)}, ...); {found}"
            )


def check_attributes(trainer: GRPOTrainer) -> None:
    """Refuse a trainer that lacks an attribute that we read.

    Raises:
        TrlContractError: names the attribute.
    """
    for name in ATTRIBUTES:
        if not hasattr(trainer, name):
            raise TrlContractError(
                f"GRPOTrainer sets no {name}; found TRL {trl.__version__}, tested with {', '.join(TESTED)}"
            )
