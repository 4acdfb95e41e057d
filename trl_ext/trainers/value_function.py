"""Values of states from the forward that the policy's loss needs anyway: a head on its trunk, or a critic beside it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from trl_ext.errors import ConfigError, ModelNotFoundError

NAME = "value_function"  # the submodule of the policy, so that the optimizer, DDP and DeepSpeed see it


class ValueFunction(nn.Module):
    """V(s_t), attached to a policy. `s_t` is all that stands before completion token t.

    Inside `recording`, each forward of the policy also gives the values of its completion tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self._recorded: list[Tensor] | None = None
        self._length = 0
        self._detach = False

    def attach(self, policy: nn.Module) -> None:
        policy.add_module(NAME, self)
        policy.register_forward_hook(self._record, with_kwargs=True)

    @contextmanager
    def recording(self, length: int, *, detach_trunk: bool = False) -> Iterator[list[Tensor]]:
        """Collect a (B, T) tensor for each forward inside, for the last `length` = T tokens of its rows."""
        recorded: list[Tensor] = []
        self._recorded, self._length, self._detach = recorded, length, detach_trunk
        try:
            yield recorded
        finally:
            self._recorded = None

    def _record(self, policy: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if self._recorded is None:
            return None
        # the state before token t ends with token t - 1
        values = self.values(kwargs)[:, -self._length - 1 : -1]
        self._recorded.append(values)
        # DDP must find the parameters of the values behind a field of the output that it knows
        known = "loss" if output.get("loss") is not None else "logits"
        output[known] = output[known] + 0.0 * values.sum()
        return output

    def values(self, inputs: dict[str, Any]) -> Tensor:
        """The value after each token of the inputs of a forward, shape (B, prompt + completion), float32 or finer."""
        raise NotImplementedError

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        raise NotImplementedError

    def load(self, folder: Path) -> None:
        raise NotImplementedError


class SharedValueHead(ValueFunction):
    """A linear head on the policy's last hidden states, zero at the beginning ("The N Implementation Details of RLHF
    with PPO"). Computed in float32, outside autocast.

    Args:
        policy: a causal language model, with or without PEFT adapters.
    """

    FILE_NAME = "value_head.safetensors"

    def __init__(self, policy: Any):
        super().__init__()
        model = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        size = model.config.get_text_config().hidden_size
        self.head = nn.Linear(size, 1, device=model.device, dtype=torch.promote_types(model.dtype, torch.float32))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._hidden: Tensor | None = None
        model.base_model.register_forward_hook(self._keep_hidden)

    def _keep_hidden(self, trunk: nn.Module, args: Any, output: Any) -> None:
        if self._recorded is not None:
            self._hidden = output.last_hidden_state

    def values(self, inputs: dict[str, Any]) -> Tensor:
        hidden, self._hidden = self._hidden, None
        assert hidden is not None, "the policy's forward did not run its trunk"
        return _linear(self.head, hidden.detach() if self._detach else hidden)

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        save_file({name: tensor.contiguous().cpu() for name, tensor in state_dict.items()}, folder / self.FILE_NAME)

    def load(self, folder: Path) -> None:
        _need(folder / self.FILE_NAME)
        self.load_state_dict(load_file(folder / self.FILE_NAME))


class SeparateCritic(ValueFunction):
    """A critic of its own: the trunk and the `score` layer of a sequence-classification model with one output.

    A checkpoint that has no such layer (a language model) gets one of zeros; a reward model keeps its own.
    """

    FOLDER_NAME = "value_model"

    def __init__(self, critic: Any):
        super().__init__()
        if not isinstance(getattr(critic, "score", None), nn.Linear) or critic.score.out_features != 1:
            raise ConfigError(
                f"value_model: {type(critic).__name__} has no `score` layer with one output; load it with "
                "AutoModelForSequenceClassification.from_pretrained(..., num_labels=1), from a decoder"
            )
        self.critic = critic

    @classmethod
    def from_pretrained(cls, name: str, **from_pretrained: Any) -> "SeparateCritic":
        """
        Raises:
            ModelNotFoundError: there is no such checkpoint.
            ConfigError: it cannot be a critic.
        """
        try:
            critic, info = AutoModelForSequenceClassification.from_pretrained(
                name, num_labels=1, output_loading_info=True, **from_pretrained
            )
        except OSError as error:
            raise ModelNotFoundError(f"value model {name!r} cannot be loaded: {' '.join(str(error).split())}") from None
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"value model {name!r} cannot be a critic: {' '.join(str(error).split())}") from None
        function = cls(critic)
        if any(key.startswith("score.") for key in info["missing_keys"]):
            with _whole(critic.score.weight):
                nn.init.zeros_(critic.score.weight)
        return function

    def values(self, inputs: dict[str, Any]) -> Tensor:
        output = self.critic.base_model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        )
        return _linear(self.critic.score, output.last_hidden_state)

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        weights = {name.removeprefix("critic."): tensor for name, tensor in state_dict.items()}
        self.critic.save_pretrained(folder / self.FOLDER_NAME, state_dict=weights)

    def load(self, folder: Path) -> None:
        _need(folder / self.FOLDER_NAME)
        saved = type(self.critic).from_pretrained(folder / self.FOLDER_NAME, dtype=self.critic.dtype)
        self.critic.load_state_dict(saved.state_dict())


def check_critic(critic: Any, tokenizer: Any, name: str | None = None) -> None:
    """Refuse a critic that reads other tokens than the policy writes.

    Raises:
        ConfigError: its vocabulary is too small, or its tokenizer (of the checkpoint `name`) is another one.
    """
    size = critic.get_input_embeddings().num_embeddings
    if size < len(tokenizer):
        raise ConfigError(f"value model: takes {size} tokens, the policy's tokenizer has {len(tokenizer)}")
    if name is None:
        return
    try:
        own = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError):
        return  # a checkpoint without a tokenizer, as the trainer's own critics are
    if own.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"value model {name!r} has another tokenizer than the policy: it would read the completions wrongly"
        )


@contextmanager
def _whole(parameter: nn.Parameter) -> Iterator[None]:
    """Inside, a parameter that ZeRO-3 keeps in parts is whole; what the first process writes into it stays."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield


def _linear(layer: nn.Linear, hidden: Tensor) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        values: Tensor = layer(hidden.to(layer.weight.dtype)).squeeze(-1)
        return values.to(torch.promote_types(values.dtype, torch.float32))


def _need(path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"{path} is missing: this checkpoint is not one of PPOTrainer's, or of another value_model")
