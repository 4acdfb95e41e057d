"""What padding does to the positions that a model gives to its tokens.

TRL passes no `position_ids`: a model counts from the first column of the batch, padding included. So a row that loses
padding on its left has other positions than before, which changes nothing where only distances count.
"""

from typing import Any


def _rotary(config: Any) -> list[dict[str, Any]]:
    """The parameters of rotary positions, one dict for each kind of layer that has its own."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [parameters] if "rope_type" in parameters else [each for each in parameters.values() if each]


def only_distances_count(config: Any) -> bool:
    """Whether the model gives the same logits wherever a row begins: rotary positions, attention in every layer."""
    text, rotary = config.get_text_config(), _rotary(config)
    kinds = set(getattr(text, "layer_types", None) or ())
    return (
        bool(rotary)
        and kinds <= {"full_attention", "sliding_attention"}
        and not any("llama_4_scaling_beta" in each for each in rotary)
        and not getattr(text, "attn_temperature_tuning", False)
    )


def depend_on_batch(config: Any) -> bool:
    """Whether the longest row of a batch changes the positions of the others (dynamic NTK, LongRoPE)."""
    return any("dynamic" in each["rope_type"] or each["rope_type"] == "longrope" for each in _rotary(config))
