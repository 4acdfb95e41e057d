"""Parameters that DeepSpeed ZeRO-3 keeps in parts, whole for a moment."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


@contextmanager
def gathered(parameters: Iterable[nn.Parameter], *, changed: bool = False) -> Iterator[None]:
    """Inside, the parameters are whole on every process, which all must come here. Nothing to do without ZeRO-3.

    Args:
        changed: keep what the first process writes into them; without it changes are lost.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    # those that are tied come twice, which DeepSpeed does not expect
    once = list({id(parameter): parameter for parameter in parameters}.values())
    with deepspeed.zero.GatheredParameters(once, modifier_rank=0 if changed else None):
        yield
