import subprocess
import sys

import pytest

import trl_ext


def test_every_public_name_resolves_and_others_do_not():
    for name in trl_ext.__all__:
        assert getattr(trl_ext, name).__name__ == name
        assert name in dir(trl_ext)
    with pytest.raises(AttributeError, match="no attribute 'CISPO'"):
        _ = trl_ext.CISPO


def test_the_losses_import_torch_and_nothing_heavier():
    code = "import sys, trl_ext.losses; assert not {'trl', 'transformers', 'accelerate', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
