import json
import venv
from pathlib import Path

import pytest

from tests.rewards.chat_server import ChatServer
from trl_ext.rewards import chat_endpoint, external_process


@pytest.fixture
def endpoint(monkeypatch):
    """A server that speaks chat completions, retried without waiting."""
    monkeypatch.setattr(chat_endpoint, "BACKOFF", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory):
    """The interpreter of an environment that has nothing but the standard library."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return str(folder / "bin" / "python")


@pytest.fixture(scope="session")
def fake_python(tmp_path_factory):
    """The interpreter of an environment that has the fake `comet` and `bleurt`."""
    folder = tmp_path_factory.mktemp("fake")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "fake.pth").write_text(str(Path(__file__).parent / "fake_scorers"))
    return str(folder / "bin" / "python")


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """What the fake scorers did, by event. Their processes end with the test."""
    path = tmp_path / "record.jsonl"
    path.touch()
    monkeypatch.setenv("FAKE_SCORER_RECORD", str(path))

    def read(event):
        whole = path.read_text().rpartition("\n")[0]  # the last line may still be in the making
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if line["event"] == event]

    yield read
    external_process._stop_all()
    external_process._PROCESSES.clear()


@pytest.fixture
def checkpoint(tmp_path):
    """A folder that is a checkpoint to both fake scorers."""
    folder = tmp_path / "checkpoint"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "model.ckpt").touch()
    (folder / "bleurt_config.json").write_text("{}")
    return folder
