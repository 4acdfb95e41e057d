"""trl-ext: what Hugging Face TRL does not have, hung on the hooks that it does have."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_ext.trainers.cispo_config import CISPOConfig
    from trl_ext.trainers.cispo_trainer import CISPOTrainer

__version__ = "0.1.0.dev0"

_PUBLIC = {
    "CISPOConfig": "trl_ext.trainers.cispo_config",
    "CISPOTrainer": "trl_ext.trainers.cispo_trainer",
}

__all__ = ["CISPOConfig", "CISPOTrainer"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `trl_ext.losses` never waits for TRL."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
