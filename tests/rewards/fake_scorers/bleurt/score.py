"""The part of BLEURT 0.0.2 that is used, with its signatures and its ways to fail."""

import json
import os

import faults

faults.record("import", environment=dict(os.environ))


class BleurtScorer:
    def __init__(self, checkpoint=None, predict_fn=None):
        path = os.path.join(checkpoint, "bleurt_config.json")
        assert os.path.exists(path), f"Could not find BLEURT checkpoint {checkpoint}"
        with open(path) as file:
            self.config = json.load(file)
        faults.record("load", path=checkpoint, kind=type(self).__name__)

    def score(self, *args, references=(), candidates=(), batch_size=None):
        assert not args
        assert len(candidates) == len(references)
        faults.record("score", completions=candidates, batch_size=batch_size)
        faults.misbehave(candidates)
        return faults.spoil(candidates, list(map(faults.overlap, candidates, references)))


class LengthBatchingBleurtScorer(BleurtScorer):
    def __init__(self, checkpoint=None, predict_fn=None):
        super().__init__(checkpoint, predict_fn)
        assert self.config["dynamic_seq_length"]
