"""A user's own Python files, which register reward types."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from trl_ext.errors import ConfigError

_loaded: set[Path] = set()


def load_plugins(paths: Sequence[str]) -> None:
    """Execute Python files, each once, for the reward types that they register.

    Raises:
        ConfigError: a file is missing or raises.
    """
    for path in map(Path, paths):
        if path.resolve() in _loaded:
            continue
        module_spec = importlib.util.spec_from_file_location(f"trl_ext_plugin_{path.stem}", path)
        if not path.is_file() or module_spec is None or module_spec.loader is None:
            raise ConfigError(f"plugin {str(path)!r}: no such Python file")
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
        try:
            module_spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module.__name__]
            raise ConfigError(f"plugin {str(path)!r} raises {type(error).__name__}: {error}") from error
        _loaded.add(path.resolve())
