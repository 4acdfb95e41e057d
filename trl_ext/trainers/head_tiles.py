"""Smaller tiles for TRL's fused LM head on devices where torch, and no kernel of its own, folds them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

from torch import Tensor
from trl import GRPOTrainer

# Tokens and vocabulary entries of a tile. TRL's own 4096 x 32768 suits its Triton kernel; folded in torch, a tile has
# half a dozen temporaries of its size. These fit the cache of a CPU core (benchmarks/README.md has what that gives).
SIZES = {
    ("trl.kernels.chunked_logprob", "TOKEN_CHUNK_SIZE"): 256,
    ("trl.trainer.utils", "_CHUNKED_LOGPROB_CHUNK_SIZE"): 2048,
}


@contextmanager
def small_tiles() -> Iterator[None]:
    """Inside, TRL's fused LM head goes through tokens and vocabulary in small tiles: the same sums, up to rounding."""
    modules = {module: import_module(module) for module, _ in SIZES}
    before = {(module, constant): getattr(modules[module], constant) for module, constant in SIZES}
    try:
        for (module, constant), size in SIZES.items():
            setattr(modules[module], constant, size)
        yield
    finally:
        for (module, constant), size in before.items():
            setattr(modules[module], constant, size)


class HeadTilesMixin(GRPOTrainer):
    """On the CPU, log-probabilities and their gradients are computed in small tiles."""

    def _small_tiles(self) -> Any:
        return small_tiles() if self.accelerator.device.type == "cpu" else nullcontext()

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with self._small_tiles():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._small_tiles():  # the backward reads the size too
            loss: Tensor = super().training_step(*args, **kwargs)
            return loss
