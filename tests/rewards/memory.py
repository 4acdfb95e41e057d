"""How far the memory of a process grows with the completions that rewards score: a program for test_memory.py.

    python -m tests.rewards.memory FOLDER TYPE ...

Prints {type: bytes}: the peak resident memory of a process that scores many completions less that of one that scores
few, for each completion more. Both are forks of this one, which has imported what all of them need.
"""

import json
import os
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from tests.rewards.tiny_models import WORDS, save, save_checkpoint, word_tokenizer
from trl_ext.builtin.tiny_model import tiny_model, tiny_tokenizer
from trl_ext.rewards import make_reward
from trl_ext.rewards.registry import get_reward_type

FEW, MANY = 1_000, 10_000
SLOW = {"bleu": (400, 4_000), "grammar": (1_000, 1_500), "code": (10, 100)}
OPTIONS: dict[str, dict[str, Any]] = {
    "code": {"allow_unsafe": True},
    "format": {"pattern": r".*\d"},
    "json_schema": {"schema": {"type": "object"}},
    "length": {"max": 10},
    "readability": {"min": 30, "soft": 20},
}
LABELS = ["contradiction", "neutral", "entailment"]
ENTRY = json.dumps({"question": "1 + 1", "answer": "2", "metadata": {"source_dataset": "chain_sum"}})


def save_wide_encoder(folder: Path) -> str:
    """A BERT without a head. Its embeddings of a text of 20 tokens take 10 KB."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(padding_side="right")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return save(folder, BertModel(config), tokenizer)


def save_checkpoints(folder: Path) -> None:
    """What `spec` names."""
    save_wide_encoder(folder / "encoder")
    save_checkpoint(folder / "classifier", LABELS)
    save_checkpoint(folder / "rater", ["score"])
    save(folder / "language_model", tiny_model(hidden_size=16, num_hidden_layers=1), tiny_tokenizer())
    (folder / "corpus.txt").write_text("the cat sat on the mat\n")


def spec(name: str, folder: Path) -> dict[str, Any]:
    """A spec of the type, with large batches: these are no part of the growth."""
    options = dict(OPTIONS.get(name, {}))
    if name == "novelty":
        options = {"corpus": str(folder / "corpus.txt")}
    elif name in {"cosine_sts", "exploration", "qa_relevance"}:
        options = {"model": str(folder / "encoder"), "batch_size": 64}
    elif name == "reward_model":
        options = {"model": str(folder / "rater"), "batch_size": 64}
    elif name == "bertscore":
        options = {"model_type": str(folder / "encoder")}
    elif name in {"perplexity", "fluency", "gptscore"}:
        options = {"model": str(folder / "language_model"), "batch_size": 64}
    elif name in {"nli", "factual_accuracy", "truthfulness", "contradiction", "topic_consistency"}:
        options = {"model": str(folder / "classifier"), "batch_size": 64}
    elif get_reward_type(name).needs_model:
        options = {"model": str(folder / "classifier"), "target_label": "neutral", "batch_size": 64}
    return {"type": name, **options}


def peak(name: str, count: int, folder: Path) -> int:
    """The most bytes that a fork of this process has in memory while it scores so many completions, groups of 8."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        with os.fdopen(reading) as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        if not answer:
            raise SystemExit(f"{name} fails at {count} completions")
        return int(answer)
    try:
        draw = random.Random(0)
        texts = [f"{' '.join(draw.choices(WORDS, k=18))} {i}" for i in range(count)]
        targets = [texts[i - i % 8] for i in range(count)]
        reward = make_reward(spec(name, folder))
        scores = reward(texts, prompts=[f"About {i // 8}" for i in range(count)], target=targets, entry=[ENTRY] * count)
        assert len(scores) == count
        os.write(writing, str(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode())
    finally:
        sys.stderr.flush()
        os._exit(0)


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    growth = {}
    for name in names:
        start = time.monotonic()
        few, many = SLOW.get(name, (FEW, MANY))
        growth[name] = (peak(name, many, folder) - peak(name, few, folder)) / (many - few)
        print(f"{name}: {growth[name]:.0f} bytes a completion, {time.monotonic() - start:.1f} s", file=sys.stderr)
    print(json.dumps(growth))


if __name__ == "__main__":
    main()
