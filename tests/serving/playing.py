"""Workers in threads of the test's process, and a trainer whose episodes they play."""

import asyncio
import contextlib
import threading
import time

import torch
from trl import GRPOConfig

from tests.agents.talk import ROWS, Talk
from tests.trainers.training import config, make_trainer
from trl_ext import CISPOConfig, CISPOTrainer
from trl_ext.agents.environment_reward import environment_reward
from trl_ext.agents.stepping import Stepper
from trl_ext.serving.ledger import Rules
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.rollout import remote_rollout
from trl_ext.serving.server import RolloutServer
from trl_ext.serving.worker import Worker

PLAY = {"max_turns": 5, "max_turn_tokens": 6}
# On a machine that stands still for seconds nobody is given up; who tests that somebody is says when.
PATIENT = {"heartbeat": 60.0, "silence": 300.0, "episode_timeout": 300.0}


@contextlib.contextmanager
def serving(rules=None, **options):
    with RolloutServer(ServerOptions(**{"port": 0, **options}), Rules(**{**PATIENT, **(rules or {})})) as server:
        yield server


@contextlib.contextmanager
def workers(server, environment=Talk, count=1, concurrency=64, first=0, url=None, **options):
    """So many workers, numbered from `first`, each in a thread; they are drained at the end."""
    options = {"step_timeout": 300.0, "token": server.options.token, **options}
    made = [
        Worker(url or server.url, environment, concurrency=concurrency, name=f"worker-{number}", **options)
        for number in range(first, first + count)
    ]
    runners = [asyncio.Runner(loop_factory=asyncio.new_event_loop) for _ in made]
    threads = [threading.Thread(target=_run, args=pair, daemon=True) for pair in zip(runners, made, strict=True)]
    loops = [runner.get_loop() for runner in runners]  # they take calls before their threads have begun
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        for loop, worker in zip(loops, made, strict=True):
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(worker.drain)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


def _run(runner, worker):
    with runner:
        runner.run(worker.run())


def until(condition, seconds=60.0):
    """Waits for something that another thread brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


class PatientStepper(Stepper):
    """Only what hangs takes too long, on a machine that stands still too: its limit is short, the others' is not."""

    async def call(self, function, *args, **kwargs):
        hangs = getattr(getattr(function, "__self__", None), "kind", None) == "hang"
        return await Stepper(1, self.timeout if hangs else 300.0).call(function, *args, **kwargs)


def remote_trainer(path, server, rollout=None, trainer_class=CISPOTrainer, config_options=None, rows=ROWS, **options):
    rollout_func = remote_rollout(server, **{**PLAY, **(rollout or {})})
    return trainer_of(path, rollout_func, trainer_class, config_options, rows, **options)


def trainer_of(path, rollout_func, trainer_class=CISPOTrainer, config_options=None, rows=ROWS, **options):
    config_class: type[GRPOConfig] = options.pop("config_class", CISPOConfig)
    args = config(config_class, **{"max_completion_length": 60, "max_steps": 3, **(config_options or {})})
    data = {"reward_funcs": [environment_reward], "train_dataset": rows, **options}
    trainer = make_trainer(trainer_class, path, args, rollout_func=rollout_func, **data)
    trainer.rollout = rollout_func
    return trainer


def play(trainer, rows, seed=3):
    """The rollout function's answer for these rows, as a trainer of ours asks for it."""
    rows = [dict(row) for row in rows]
    trainer.rollout_rows = rows
    torch.manual_seed(seed)
    return trainer.rollout_func([row["prompt"] for row in rows], trainer)
