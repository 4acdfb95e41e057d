import importlib.util
import json
import sys
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("install_torch", Path(__file__).parents[2] / "tools" / "install_torch.py")
install_torch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install_torch)

CPU_BUILD = ["filelock", "sympy>=1.13.3"]
CUDA_BUILD = [*CPU_BUILD, 'nvidia-cublas; platform_system == "Linux"']


@pytest.fixture
def commands(monkeypatch):
    """What main() runs, with pip's plan for the installation made up and Linux as the platform."""
    run = []

    def fake(requires, gpu):
        def subprocess_run(command, check):
            if "--report" in command:
                plan = {"install": [{"metadata": {"requires_dist": requires}}]}
                Path(command[command.index("--report") + 1]).write_text(json.dumps(plan))
            else:
                run.append(" ".join(command[1:]))

        monkeypatch.setattr(install_torch.subprocess, "run", subprocess_run)
        monkeypatch.setattr(install_torch, "has_nvidia_gpu", lambda: gpu)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(sys, "argv", ["install_torch.py", "2.13.0"])
        install_torch.main()
        return run

    return fake


@pytest.mark.parametrize(("requires", "gpu"), [(CUDA_BUILD, True), (CPU_BUILD, False)])
def test_pips_own_choice_is_taken_with_a_gpu_and_where_it_is_a_cpu_build(commands, requires, gpu):
    (command,) = commands(requires, gpu)
    assert command.startswith("-m pip install")
    assert command.endswith("torch==2.13.0")


def test_without_a_gpu_a_cuda_build_is_replaced_by_the_cpu_one(commands):
    install_uv, install_cpu = commands(CUDA_BUILD, False)
    assert install_uv.endswith("uv")
    assert install_cpu.startswith("-m uv pip install")
    assert install_cpu.endswith("--torch-backend cpu torch==2.13.0")
