"""Scores texts for `trl_ext.rewards.external_process`, which runs it in another environment and never imports it.

    python external_scorer.py comet|bleurt MODEL CHANNEL SECONDS

CHANNEL is the descriptor of a socket: {"ready": true} goes out once the model is there, then for each
{"rows": [[completion, reference, ...], ...], "batch_size": 16, "seconds": 60} that comes in one {"scores": [...]} or
{"error": "..."}, all of them lines of JSON. What the library prints is not in their way.

Needs Python 3.8, its standard library and the scorer. The file must not have the name of a library: its folder comes
first where Python looks for modules.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any


def load_comet(model: str) -> Callable[[Any, int], Any]:
    from comet import download_model, load_from_checkpoint

    if os.path.isdir(model):
        path = os.path.join(model, "checkpoints", "model.ckpt")
    else:
        path = model if os.path.isfile(model) else download_model(model)
    metric = load_from_checkpoint(path)
    gpus = 1 if os.environ.get("CUDA_VISIBLE_DEVICES") else 0

    def score(rows: Any, batch_size: int) -> Any:
        data = [{"src": source, "mt": completion, "ref": reference} for completion, reference, source in rows]
        # Without workers: each batch would fork two from a process that has threads and perhaps a GPU.
        return metric.predict(data, batch_size=batch_size, gpus=gpus, progress_bar=False, num_workers=0).scores

    return score


def load_bleurt(model: str) -> Callable[[Any, int], Any]:
    from bleurt import score as library

    config = os.path.join(model, "bleurt_config.json")
    dynamic = False
    if os.path.isfile(config):
        with open(config, encoding="utf-8") as file:
            dynamic = json.load(file).get("dynamic_seq_length", False)
    # The same scores, but texts are not padded to 512 tokens: 2 to 10 times as fast, by the library's README.
    scorer = (library.LengthBatchingBleurtScorer if dynamic else library.BleurtScorer)(model)

    def score(rows: Any, batch_size: int) -> Any:
        completions, references = [row[0] for row in rows], [row[1] for row in rows]
        return scorer.score(references=references, candidates=completions, batch_size=batch_size)

    return score


LOADERS = {"comet": load_comet, "bleurt": load_bleurt}


def receive(channel: socket.socket, requests: Any) -> None:
    """Put each line in the queue; end this process, whatever it is doing, when the other end is gone."""
    try:
        for line in channel.makefile("rb"):
            requests.put(line)
    finally:
        os._exit(0)


def send(channel: socket.socket, reply: dict[str, Any]) -> None:
    channel.sendall(json.dumps(reply).encode() + b"\n")


def main() -> None:
    name, model, descriptor, seconds = sys.argv[1:]
    os.set_inheritable(int(descriptor), False)
    channel = socket.socket(fileno=int(descriptor))
    requests: Any = queue.SimpleQueue()
    threading.Thread(target=receive, args=(channel, requests), daemon=True).start()
    # No thread runs where a library's C code hangs with the lock of the interpreter: this ends the process even then.
    faulthandler.dump_traceback_later(float(seconds), exit=True)
    score = LOADERS[name](os.path.expanduser(model))
    send(channel, {"ready": True})
    while True:
        faulthandler.cancel_dump_traceback_later()
        request = json.loads(requests.get())
        faulthandler.dump_traceback_later(request["seconds"], exit=True)
        try:
            reply: dict[str, Any] = {"scores": list(map(float, score(request["rows"], request["batch_size"])))}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        send(channel, reply)


if __name__ == "__main__":
    main()
