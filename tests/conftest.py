"""Tests run without a model hub, on the CPU, on tiny checkpoints that they make."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func and environment_factory are what the tests are about
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # the models are so small that a second thread costs more than it gives

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# a machine that stalls makes no failures
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with an untrained tiny model and its tokenizer."""
    from trl_ext.builtin.tiny_model import tiny_model, tiny_tokenizer

    folder: Path = tmp_path_factory.mktemp("tiny")
    tiny_model(hidden_size=32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def registered_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reward types that a test registers, by decorator or plugin, are gone after it."""
    from trl_ext.rewards import list_rewards, plugins, registry

    list_rewards()  # all built-in types are there
    monkeypatch.setattr(registry, "_TYPES", dict(registry._TYPES))
    monkeypatch.setattr(registry, "_ALIASES", dict(registry._ALIASES))
    monkeypatch.setattr(plugins, "_loaded", set(plugins._loaded))
