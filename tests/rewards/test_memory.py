"""Memory stays bounded at 10,000 completions, whatever the type."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rewards.memory import save_checkpoints
from trl_ext.rewards import list_rewards

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"judge", "legal_validity", "medical_accuracy", "ruler", "scientific_integrity", "comet", "bleurt"}
TYPES = [name for name in list_rewards() if name not in ELSEWHERE]  # those need a server or another environment

# Texts of 80 characters, what tells repeated ones apart and the results take 1 KB, a sentence embedding 2 KB more. Kept
# token embeddings would take 10 KB, logits over the characters 30 KB.
BOUND = 7_000


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoints(folder)
    return folder


def start(code: str, *args: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", code, *args]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def growth(process: "subprocess.Popen[str]") -> dict[str, float]:
    output, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def test_no_type_keeps_more_of_a_completion_than_its_text_and_a_vector(checkpoints: Path) -> None:
    program = "from tests.rewards.memory import main; main()"
    processes = [start(program, str(checkpoints), *TYPES[half::2]) for half in range(2)]
    bytes_of = {name: size for process in processes for name, size in growth(process).items()}
    assert sorted(bytes_of) == TYPES
    assert {name: round(size) for name, size in bytes_of.items() if size > BOUND} == {}
    assert min(bytes_of.values()) > 0  # what cannot be measured here is not bounded either


def test_the_bound_is_passed_where_token_embeddings_or_logits_are_kept(checkpoints: Path) -> None:
    program = """
from tests.rewards import memory
from trl_ext.rewards import embedding, language_model, models

embedding._CHUNK = language_model._AT_ONCE = models._TOKENS_ON_CPU = 10**6
in_batches = language_model.run_by_length
language_model.run_by_length = lambda items, size, run, batch_size: in_batches(items, size, run, len(items))
memory.FEW, memory.MANY = 300, 3_000
memory.main()
"""
    bytes_of = growth(start(program, str(checkpoints), "bertscore", "perplexity"))
    assert min(bytes_of.values()) > BOUND
