"""Recipes run as their command runs them, each in a process of its own that can be killed at a chosen moment.

The processes are forked from one that has imported torch and TRL once, so that a run takes the time of its training.
"""

import json
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from safetensors.torch import load_file

import trl_ext.trainers.hybrid_trainer
import trl_ext.trainers.ppo_trainer  # noqa: F401
from tests.launching import FOLDER, launched, of_process, without_deepspeeds_own_communication
from tests.trainers.training import PROMPTS
from trl_ext.recipe import report, task  # noqa: F401
from trl_ext.tracking.callbacks import read_metrics
from trl_ext.trainers import checkpoints, cispo_trainer, preemption  # noqa: F401

ROOT = Path(__file__).parents[2]
# what differs from one of two equal runs to the other; train_loss is a mean over the steps of the last process
UNEQUAL = ("train_runtime", "eval_runtime", "_per_second", "step_time", "train_loss", "preparation_time")
REWARDS = """
import asyncio, os, time

def length(completions, **columns):
    return [len(c) + sum(map(ord, c)) % 7 / 7 for c in completions]

def raises_on_1(completions, trainer_state, **columns):
    if os.environ.get("RANK") == "1" and trainer_state.global_step == 4:
        raise KeyError("no such thing")
    return length(completions)

async def raises_later_on_1(completions, trainer_state, **columns):
    await asyncio.sleep(0.01)
    return raises_on_1(completions, trainer_state)

def hangs_on_1(completions, **columns):
    if os.environ.get("RANK") == "1":
        time.sleep(600)
    return length(completions)

async def hangs_later_on_1(completions, **columns):
    if os.environ.get("RANK") == "1":
        await asyncio.sleep(600)
    return length(completions)
"""

_context = multiprocessing.get_context("forkserver")


class Run:
    """The command of a recipe in a folder; `start` and `end` may be called again and again.

    `config` is a file of accelerate_configs/ that several processes are started with; else they run DDP.
    """

    def __init__(self, recipe: str, tiny: str, folder: Path, *options: str, config: str | None = None):
        folder.mkdir()
        PROMPTS.add_column("answer", ["1"] * len(PROMPTS)).to_json(folder / "prompts.jsonl")
        (folder / "my_rewards.py").write_text(REWARDS)
        self.recipe, self.folder, self.out = recipe, folder, folder / "out"
        self.environment = {} if config is None else of_process(launched(FOLDER / f"{config}.yaml")[1])
        self.options = [
            *("--model_name_or_path", tiny, "--dataset_name", "prompts.jsonl", "--reward_funcs", "my_rewards.length"),
            *("--per_device_train_batch_size", "8", "--num_generations", "4", "--max_completion_length", "6"),
            *("--steps_per_generation", "2", "--num_iterations", "2", "--learning_rate", "1e-2"),
            *("--max_steps", "10", "--logging_steps", "1", "--report_to", "none", "--bf16", "false"),
            *("--use_cpu", "true", "--gradient_checkpointing", "false", "--dataloader_pin_memory", "false"),
            *("--output_dir", "out", "--save_steps", "3", "--save_total_limit", "1", "--disable_tqdm", "true"),
            *("--resume_from_checkpoint", "auto", *options),
        ]

    def start(self, moment: str = "never", count: int = 1, processes: int = 1, on: int = 0) -> list[ForkServerProcess]:
        """Run it; at the `count`th `moment` (see below) process number `on` of `processes` does what it says."""
        _context.set_forkserver_preload([__name__])  # here and not above: another test may have told it otherwise
        self._store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        started = []
        for rank in range(processes):
            distributed = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            environment = dict(self.environment)
            if processes > 1:
                environment |= {**meeting, **distributed}
            happening = (moment, count) if rank == on else ("never", 1)
            job = [self.recipe, self.options, str(self.folder), environment, happening, str(self._log(rank))]
            started.append(_context.Process(target=_run, args=job))
            started[-1].start()
        return started

    def end(self, *args: Any, **kwargs: Any) -> list[int]:
        """As `start`, waiting for the end: the exit code of each process.

        As by torchrun, those that wait for one that has failed are killed in the end.
        """
        started = self.start(*args, **kwargs)
        running = {process.sentinel for process in started}
        while running and (ended := wait(running, 60 if self._failed(started) else 300)):
            running -= set(ended)
        hang = running and not self._failed(started)
        for process in started:
            process.kill()
            process.join()
        assert not hang, self.said()
        return [process.exitcode for process in started]

    @staticmethod
    def _failed(started: list[ForkServerProcess]) -> bool:
        return any(process.exitcode for process in started)

    def said(self, rank: int = 0) -> str:
        """What the last run of a process wrote to stdout and stderr."""
        return self._log(rank).read_text()

    def checkpoints(self) -> list[str]:
        return sorted((path.name for path in self.out.glob("*checkpoint-*")), key=lambda name: (len(name), name))

    def weights(self) -> dict[str, torch.Tensor]:
        """What the run left: the policy and, of PPO, the value function."""
        return {
            f"{path.name}/{name}": tensor
            for path in sorted(self.out.glob("*.safetensors"))
            for name, tensor in load_file(path).items()
        }

    def metrics(self) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in row.items() if not any(part in name for part in UNEQUAL)}
            for row in read_metrics(self.out / "metrics.jsonl")
        ]

    def steps(self) -> int:
        return int(json.loads((self.out / "summary.json").read_text())["steps"])

    def _log(self, rank: int) -> Path:
        return self.folder / f"log_{rank}.txt"


def _run(recipe: str, options: list[str], folder: str, environment: dict, moment: tuple[str, int], log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    os.environ |= {name: str(value) for name, value in environment.items()}
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        without_deepspeeds_own_communication()
    os.chdir(folder)
    if moment[0] != "never":
        MOMENTS[moment[0]](moment[1])
    sys.argv = [recipe, *options]
    runpy.run_path(str(ROOT / "recipes" / recipe), run_name="__main__")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at(owner: Any, name: str, count: int, what: Callable[..., Any]) -> None:
    """In the `count`th call of `owner.name`, `what(original, *args)` takes its place."""
    original, calls = getattr(owner, name), iter(range(1, 10**9))

    def function(*args: Any, **kwargs: Any) -> Any:
        return what(original, *args, **kwargs) if next(calls) == count else original(*args, **kwargs)

    setattr(owner, name, function)


def _in_generation(count: int) -> None:
    _at(torch, "multinomial", count, lambda *args, **kwargs: _die())


def _in_backward(count: int) -> None:
    def backward(original: Any, accelerator: Any, loss: torch.Tensor, **kwargs: Any) -> None:
        loss.register_hook(lambda gradient: _die())
        original(accelerator, loss, **kwargs)

    _at(accelerate.Accelerator, "backward", count, backward)


def _in_a_file(count: int) -> None:
    """Half of the file is on the disk then."""

    def save(original: Any, content: Any, path: Any, **kwargs: Any) -> None:
        original(content, path, **kwargs)
        os.truncate(path, Path(path).stat().st_size // 2)
        _die()

    _at(torch, "save", count, save)


def _before_the_seal(count: int) -> None:
    _at(checkpoints, "write_seal", count, lambda *args: _die())


def _before_rotation(count: int) -> None:
    _at(checkpoints, "rotate", count, lambda *args: _die())


def _in_rotation(count: int) -> None:
    def discard(original: Any, checkpoint: Path) -> None:
        doomed = checkpoint.with_name(checkpoints._DOOMED + checkpoint.name)
        checkpoint.rename(doomed)
        next(path for path in sorted(doomed.rglob("*.pt"))).unlink()
        _die()

    _at(checkpoints, "discard", count, discard)


def _in_a_log(count: int) -> None:
    """Half of a line is on the disk then."""

    def dumps(original: Any, row: Any) -> str:
        with Path("out/metrics.jsonl").open("a") as file:
            file.write(original(row)[:10])
        _die()
        return ""

    _at(json, "dumps", count, dumps)


def _in_evaluation(count: int) -> None:
    _at(transformers.Trainer, "evaluate", count, lambda *args, **kwargs: _die())


def _sigterm(count: int) -> None:
    def backward(original: Any, *args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(*args, **kwargs)

    _at(accelerate.Accelerator, "backward", count, backward)


MOMENTS = {
    "in generation": _in_generation,
    "in backward": _in_backward,
    "in a file": _in_a_file,
    "before the seal": _before_the_seal,
    "before rotation": _before_rotation,
    "in rotation": _in_rotation,
    "in a log": _in_a_log,
    "in evaluation": _in_evaluation,
    "sigterm": _sigterm,
}
