"""Workers in threads of the test's process, and a trainer whose episodes they play."""

import asyncio
import contextlib
import threading

import torch
from trl import GRPOConfig

from tests.agents.talk import ROWS, Talk
from tests.trainers.training import config, make_trainer
from trl_ext import CISPOConfig, CISPOTrainer
from trl_ext.agents.environment_reward import environment_reward
from trl_ext.serving.ledger import Rules
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.rollout import remote_rollout
from trl_ext.serving.server import RolloutServer
from trl_ext.serving.worker import Worker

PLAY = {"max_turns": 5, "max_turn_tokens": 6}
QUICK = {"heartbeat": 0.2, "silence": 5.0, "episode_timeout": 20.0}


@contextlib.contextmanager
def serving(rules=None, **options):
    with RolloutServer(ServerOptions(port=0, **options), Rules(**{**QUICK, **(rules or {})})) as server:
        yield server


@contextlib.contextmanager
def workers(server, environment=Talk, count=1, concurrency=64, first=0, **options):
    """So many workers, numbered from `first`, each in a thread; they are drained at the end."""
    loops = []

    def run(worker):
        async def play():
            loops.append((asyncio.get_running_loop(), worker))
            await worker.run()

        asyncio.run(play())

    options = {"step_timeout": 20.0, "token": server.options.token, **options}
    made = [
        Worker(server.url, environment, concurrency=concurrency, name=f"worker-{number}", **options)
        for number in range(first, first + count)
    ]
    threads = [threading.Thread(target=run, args=(worker,), daemon=True) for worker in made]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        for loop, worker in loops:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(worker.drain)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


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
