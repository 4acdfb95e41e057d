"""The part of unbabel-comet 2.2.7 that is used, with its signatures and its ways to fail."""

import os
from pathlib import Path
from types import SimpleNamespace

import faults

faults.record("import", environment=dict(os.environ))
print("noise of an import")


def download_model(model, saving_directory=None, local_files_only=False):
    if model != "Unbabel/wmt22-comet-da":
        raise KeyError(f"Model '{model}' not supported by COMET.")
    return __file__


def load_from_checkpoint(checkpoint_path, reload_hparams=False, strict=False, local_files_only=False):
    if not Path(checkpoint_path).is_file():
        raise Exception(f"Invalid checkpoint path: {checkpoint_path}")
    faults.record("load", path=str(checkpoint_path))
    return Model()


class Model:
    def predict(
        self, samples, batch_size=16, gpus=1, devices=None, mc_dropout=0, progress_bar=True, accelerator="auto",
        num_workers=None, length_batching=True,
    ):  # fmt: skip
        completions = [sample["mt"] for sample in samples]
        faults.record("score", completions=completions, batch_size=batch_size, gpus=gpus, progress_bar=progress_bar)
        print("noise of a batch")
        faults.misbehave(completions)
        scores = [faults.overlap(sample["mt"], sample["ref"], sample["src"]) for sample in samples]
        return SimpleNamespace(scores=faults.spoil(completions, scores))
