import pytest

from trl_ext.errors import ConfigError
from trl_ext.rewards import make_reward


def test_a_plugin_registers_types_once(tmp_path):
    path = tmp_path / "plugin.py"
    path.write_text(
        "from trl_ext.rewards import register_reward\n"
        "@register_reward('plugged')\n"
        "def plugged(completions):\n"
        "    return [float('!' in text) for text in completions]\n"
    )
    for _ in range(2):
        assert make_reward({"type": "plugged"}, plugins=[path])(["a!", "a"]) == [1.0, 0.0]
    with pytest.raises(ConfigError, match=r"plugin 'none.py': no such Python file"):
        make_reward({"type": "plugged"}, plugins=["none.py"])
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"broken.py' raises ZeroDivisionError"):
        make_reward({"type": "plugged"}, plugins=[broken])


def test_a_plugin_may_register_a_dataclass(tmp_path):
    path = tmp_path / "plugin.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from trl_ext.rewards import register_reward\n"
        "@register_reward('constant')\n"
        "@dataclass\n"
        "class Constant:\n"
        "    value: float\n"
        "    def __call__(self, completions):\n"
        "        return [self.value] * len(completions)\n"
    )
    assert make_reward({"type": "constant", "value": 3}, plugins=[path])(["a"]) == [3.0]
