"""A process of its own for each run, forked from one that has imported what takes long."""

import multiprocessing
from typing import Any

PRELOADED = ["trl.trainer.grpo_trainer", "trl_ext.trainers.cispo_trainer", "trl_ext.trainers.ppo_trainer"]


def one_process_each(jobs: int = 1) -> Any:
    """A pool that runs so many at a time, each in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context.Pool(jobs, maxtasksperchild=1)
