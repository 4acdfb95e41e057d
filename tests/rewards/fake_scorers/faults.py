"""What the fake scorers share: a score that can be computed by hand, a record, and texts that make them fail."""

import ctypes
import json
import os
import sys
import time
from pathlib import Path


def record(event, **facts):
    """Add a line to the file that FAKE_SCORER_RECORD names."""
    path = os.environ.get("FAKE_SCORER_RECORD")
    if path:
        line = json.dumps({"event": event, "pid": os.getpid(), **facts}) + "\n"
        with open(path, "ab", buffering=0) as file:
            file.write(line.encode())


def overlap(completion, reference, source=""):
    """Shared over all characters, with a tenth of the same for the source."""
    completion.encode()  # as a tokenizer, it refuses lone surrogates
    shared = len(set(completion) & set(reference)) / max(1, len(set(completion) | set(reference)))
    return shared + len(set(completion) & set(source)) / max(1, len(set(completion) | set(source))) / 10


def misbehave(completions):
    """Do what the completions ask for."""
    for completion in completions:
        if completion == "die":
            print("the last words", file=sys.stderr, flush=True)
            os._exit(7)
        if completion.startswith("die once "):
            mark = Path(completion.removeprefix("die once "))
            if not mark.exists():
                mark.touch()
                os._exit(7)
        if completion == "raise":
            raise ValueError("the library\ncannot")
        if completion == "hang":
            time.sleep(600)
        if completion == "hang with the lock":
            ctypes.PyDLL(None).sleep(600)
        if completion == "shout":
            print('{"scores": [9]}\n' * 50_000)
            os.write(1, b'{"scores": [9]}\n' * 50_000)
            os.write(2, b"no line end " * 500_000)


def spoil(completions, scores):
    """The scores, too few or not finite where the completions ask for it."""
    scores = [
        float(text) if text in ("nan", "inf", "-inf") else score
        for text, score in zip(completions, scores, strict=True)
    ]
    return scores[1:] if "lose one" in completions else scores
