"""Workers in processes of their own, that are forked again when they die: `python mortal_workers.py URL WORKERS`.

Their environment kills its whole process, with SIGKILL, in one of five episodes,
the first worker's in its first. Who starts them kills their group.
"""

import asyncio
import os
import random
import signal
import sys

from tests.agents.talk import Talk
from trl_ext.serving.worker import Worker, run_worker


class Mortal(Talk):
    """Dies in a turn of one episode in five, whatever the row says: another attempt may live."""

    chance = 0.2

    def reset(self, **row):
        self.dies = random.random() < self.chance
        return super().reset(**row)

    def step(self, action):
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def child(url: str, number: int, chance: float = Mortal.chance) -> int:
    pid = os.fork()
    if pid:
        return pid
    random.seed()  # each its own
    Mortal.chance = chance
    try:
        run_worker(Worker(url, Mortal, concurrency=2, name=f"mortal-{number}", step_timeout=10.0))
    finally:
        os._exit(0)


def main() -> None:
    url, count = sys.argv[1], int(sys.argv[2])
    running = {child(url, number, 1.0 if number == 0 else Mortal.chance): number for number in range(count)}
    asyncio.set_event_loop(None)
    while True:
        pid, _ = os.wait()
        number = running.pop(pid)
        print(f"mortal-{number} died", flush=True)
        running[child(url, number)] = number


if __name__ == "__main__":
    main()
