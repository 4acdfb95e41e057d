"""Install torch: the default build where there is an NVIDIA GPU, the CPU build elsewhere.

    python tools/install_torch.py 2.13.0

On Linux the package index's default torch brings several gigabytes of CUDA packages. Whether it would is read from
pip's own plan for the installation (`--dry-run --report`), so that an index or a folder of wheels that holds a CPU
build is used as it is; elsewhere uv fetches the CPU build (`--torch-backend cpu`).
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]


def has_nvidia_gpu() -> bool:
    nvidia_smi = shutil.which("nvidia-smi")
    return nvidia_smi is not None and subprocess.run([nvidia_smi, "-L"], capture_output=True).returncode == 0


def brings_cuda(requirement: str) -> bool:
    """Whether pip would install CUDA packages (`nvidia-...`, `cuda-...`) with the torch that it would choose here."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--no-deps", "--ignore-installed", "--report", str(report)]
        subprocess.run([*PIP, *options, requirement], check=True)
        plan = json.loads(report.read_text())
    wanted = plan["install"][0]["metadata"].get("requires_dist", [])
    return sys.platform == "linux" and any(name.startswith(("nvidia-", "cuda-")) for name in wanted)


def main() -> None:
    requirement = f"torch=={sys.argv[1]}"
    if has_nvidia_gpu() or not brings_cuda(requirement):
        subprocess.run([*PIP, requirement], check=True)
        return
    subprocess.run([*PIP, "uv"], check=True)
    uv = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    subprocess.run([*uv, "--torch-backend", "cpu", requirement], check=True)


if __name__ == "__main__":
    main()
