"""How many episodes a rollout server hands out, answers and takes back: many workers, short episodes, no model.

    python -m benchmarks.server                                      about half a minute on 2 cores
    python -m benchmarks.server --workers 20 --episodes 200 --rounds 2    a try

The server's process has the trainer's side, as in training: the queue, the leases, the tokens and masks of each
episode, and a scripted policy in the place of a model, which walks straight to the goal of grid_world. All workers run
in one other process, each with a connection of its own, and step real environments. A round asks for all episodes at
once and is over when the last one is.

The latency of a turn is what an environment sees: from the return of its `reset` or `step` to the next call of `step`,
threads and the network included. Under such a load it is mostly waiting: all workers want the policy at once. Memory is
that of the server's process after each round. Every episode must arrive at its goal, or the run stops.

The slowest turns are those during which Python's garbage collector looks at every object of the server's process, most
of them torch's and transformers': `pause` is the longest such stop of a round. A program can spare itself these with
`gc.freeze()` once it has imported and built what it needs, as the second half of the rounds does.

The result goes to --output as JSON. A run without options becomes the result that the project shows:
results/server.json and the table in benchmarks/README.md.
"""

import argparse
import asyncio
import gc
import multiprocessing
import os
import resource
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.tables import RESULTS, write_result

RESULT = RESULTS / "server.json"
WORKERS, EPISODES, ROUNDS = 200, 2000, 10
MAX_TURNS = 8


class ScriptedTrainer:
    """What a rollout reads of a trainer, around a policy that knows the way; it answers as a vLLM engine would."""

    use_vllm = True
    max_completion_length = 64
    num_generations = num_generations_eval = 1
    chat_template, chat_template_kwargs = None, {}

    def __init__(self) -> None:
        from accelerate import Accelerator

        from trl_ext.builtin.tiny_model import tiny_tokenizer

        self.accelerator = Accelerator(cpu=True)
        self.processing_class = tiny_tokenizer()
        self.eos_token_ids = [self.processing_class.eos_token_id]
        self.args = SimpleNamespace(disable_tqdm=True)
        self.state = SimpleNamespace(global_step=0)
        self.vllm_generation = SimpleNamespace(max_completion_length=64)
        text_config = SimpleNamespace(max_position_embeddings=None)
        self.model = SimpleNamespace(training=True, config=SimpleNamespace(get_text_config=lambda: text_config))
        self.rollout_rows: list[dict[str, Any]] = []
        self._letters = self._best()

    def _generate_single_turn(self, prefixes: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        letters = [[self._letters[tuple(prefix[-6:])]] for prefix in prefixes]  # a1>c4:
        return letters, [[-0.5] for _ in letters]

    def _best(self) -> dict[tuple[int, ...], int]:
        from trl_ext.agents.environments.grid_world import GridWorld

        world, best = GridWorld(), {}
        cells = [f"{column}{row}" for column in "abcd" for row in "1234"]
        for start, goal in ((start, goal) for start in cells for goal in cells):
            text = world.reset(start=start, goal=goal)
            letter = (world.closer_letters() or ["u"])[0]
            best[tuple(self.processing_class(text=text)["input_ids"])] = self.processing_class(text=letter)[
                "input_ids"
            ][0]
        return best


def work(url: str, count: int, latencies: Any) -> None:
    """All workers, in a process of their own. What their environments waited goes to `latencies` at the end."""
    from trl_ext.agents.environments.grid_world import GridWorld
    from trl_ext.serving.worker import Worker

    seconds: list[float] = []

    class Timed(GridWorld):
        """Takes the time between its calls."""

        def reset(self, **row: Any) -> str:
            text = super().reset(**row)
            self.since = time.perf_counter()
            return text

        def step(self, action: Any) -> Any:
            seconds.append(time.perf_counter() - self.since)
            step = super().step(action)
            self.since = time.perf_counter()
            return step

    async def all_of_them() -> None:
        workers = [Worker(url, Timed, name=f"worker-{number}") for number in range(count)]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        while (await asyncio.to_thread(latencies.recv)) != "end":
            latencies.send(seconds[:])
            seconds.clear()
        for worker in workers:
            worker.drain()
        await asyncio.gather(*running)

    asyncio.run(all_of_them())


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the result and its table."""
    args = parse(argv)
    result = {"machine": machine(), **measure(args.workers, args.episodes, args.rounds)}
    as_shown = (args.workers, args.episodes, args.rounds) == (WORKERS, EPISODES, ROUNDS)
    write_result(result, table(result), args.output, (RESULT, "server") if as_shown else None)


def measure(workers: int, episodes: int, rounds: int) -> dict[str, Any]:
    """Rounds with the same workers.

    Raises:
        SystemExit: an episode did not arrive, or the accounts do not add up.
    """
    from tqdm import tqdm

    from trl_ext.serving.options import ServerOptions
    from trl_ext.serving.rollout import remote_rollout
    from trl_ext.serving.server import RolloutServer

    trainer, measured = ScriptedTrainer(), []
    with Pauses() as pauses, RolloutServer(ServerOptions(port=0, rate=1e6, burst=10**6)) as server:
        here, there = multiprocessing.Pipe()
        load = multiprocessing.get_context("spawn").Process(target=work, args=(server.url, workers, there), daemon=True)
        load.start()
        while len(server.desk.ledger.holders) < workers:
            time.sleep(0.05)
        rollout = remote_rollout(server, max_turns=MAX_TURNS, max_turn_tokens=1, gather_seconds=0.0)
        for number in tqdm(range(rounds), desc="rounds", disable=None):
            trainer.rollout_rows = [{"prompt": "", "seed": number * episodes + row} for row in range(episodes)]
            trainer.state.global_step = number
            if number == rounds // 2:
                gc.collect()
                gc.freeze()
            pauses.longest = 0.0
            start = time.perf_counter()
            trajectories = rollout([""] * episodes, trainer)["trajectory"]
            seconds = time.perf_counter() - start
            if not all(one.success for one in trajectories):
                raise SystemExit(f"round {number}: an episode did not arrive at its goal")
            here.send("more")
            waits = sorted(here.recv())
            measured.append(
                {
                    "seconds": seconds,
                    "turns": sum(one.turns for one in trajectories),
                    "p50_ms": 1000 * waits[len(waits) // 2],
                    "p99_ms": 1000 * waits[int(0.99 * len(waits))],
                    "pause_ms": 1000 * pauses.longest,
                    "memory_mib": memory(),
                }
            )
        here.send("end")
        load.join()
        counters = server.desk.ledger.counters
        if (counters.done, counters.failed, counters.dropped, counters.open) != (rounds * episodes, 0, 0, 0):
            raise SystemExit(f"the accounts do not add up: {counters}")
    return {"workers": workers, "episodes": episodes, "rounds": measured}


class Pauses:
    """The longest time for which the garbage collector has stopped this process."""

    def __init__(self) -> None:
        self.longest = self._began = 0.0

    def __enter__(self) -> "Pauses":
        gc.callbacks.append(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        gc.callbacks.remove(self._note)
        gc.unfreeze()

    def _note(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.longest = max(self.longest, time.perf_counter() - self._began)


def memory() -> float:
    """MiB that this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def machine() -> dict[str, Any]:
    """What the times depend on."""
    import uvicorn

    return {"cpu_cores": len(os.sched_getaffinity(0)), "uvicorn": uvicorn.__version__}


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    rounds, episodes = result["rounds"], result["episodes"]
    lines = [
        f"{result['machine']['cpu_cores']} CPU cores for server and workers; {result['workers']} connected workers, "
        f"{episodes:,} queued episodes a round.",
        "",
        "| round | seconds | episodes/s | turns/s | turn p50 | turn p99 | pause | server's memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, one in enumerate(rounds, 1):
        seconds = one["seconds"]
        lines.append(
            f"| {number} | {seconds:.1f} | {episodes / seconds:.0f} | {one['turns'] / seconds:.0f} | "
            f"{one['p50_ms']:.0f} ms | {one['p99_ms']:.0f} ms | {one['pause_ms']:.0f} ms | "
            f"{one['memory_mib']:.0f} MiB |"
        )
    half = len(rounds) // 2
    as_is, frozen = (
        f"{statistics.median(episodes / one['seconds'] for one in part):.0f} episodes/s with a turn p99 of "
        f"{statistics.median(one['p99_ms'] for one in part):.0f} ms"
        for part in (rounds[:half], rounds[half:])
    )
    grown = rounds[-1]["memory_mib"] - rounds[half - 1]["memory_mib"]
    lines += [
        "",
        f"Medians: {as_is}; from round {half + 1} on, after `gc.freeze()`, {frozen}. "
        f"Memory in the second half of the rounds: {grown:+.1f} MiB.",
    ]
    return "\n".join(lines)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=WORKERS, help="connected at a time (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="one after the other (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where the result goes, see above")
    args = parser.parse_args(argv)
    if args.workers < 1 or args.episodes < args.workers or args.rounds < 2:
        parser.error("--workers must be 1 or more, --episodes as many at least, --rounds 2 or more")
    return args


if __name__ == "__main__":
    main()
