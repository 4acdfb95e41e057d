"""What our layer costs with every feature off: `CISPOTrainer(lean_update=False)` against TRL's trainer.

    python -m benchmarks.overhead                    about a minute on a core
    python -m benchmarks.overhead --steps 4          a try

TRL's `GRPOTrainer(loss_type="cispo", epsilon_high=5.0)` has the small tiles of our trainers for the LM head, which are
faster on the CPU and would hide what the rest costs. Both train on the same recorded rollouts: 80 completions of 120 to
128 tokens in 10 micro-batches, a batch for each optimizer step.

A percent is less than what the time of a step varies by. But what our layer does depends on rows and tokens, and not on
the model. So its milliseconds are measured with the smallest of models (a layer of 16), where they are not lost in the
noise, and then set against a step of TRL's with a model of the sizes below. To measure them both trainers run in one
process and one thread each, and hand over to one another after each micro-batch (ours, TRL's, TRL's, ours, ...). What
is counted is the CPU time of the thread, everything included: data, rollout, forward, backward, optimizer, callbacks.
The overhead is the sum, over the places in a step, of the median differences of neighbours; its interval is from 2,000
bootstrap samples of the steps.

Apart from that, steps of ours with the larger model are run under `cProfile`: the share of their time that was spent in
our own functions and in the C functions that they call. It does not count torch operations within Python functions of
others, and Python counts more than without a profiler.

The result goes to --output as JSON. A run with the default sizes and without --output becomes the result that the
project shows: results/overhead.json, and the table in benchmarks/README.md.
"""

import argparse
import cProfile
import os
import pstats
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import update
from benchmarks.rewards import machine
from benchmarks.tables import RESULTS, write_result

RESULT = RESULTS / "overhead.json"
SIZES = {"hidden_size": 128, "layers": 2, "vocabulary": 1000, "steps": 100}
SMALLEST = {"hidden_size": 16, "layers": 1, "vocabulary": 50}
SIDES = ("cispo", "tiles")
WARM_UP, LARGER = 3, 8  # steps: not counted, and with the larger model
PACKAGE = str(Path(__file__).parents[1] / "trl_ext")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where the result goes, see above")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error("--steps must be 1 or more")
    args.device, args.dtype = "cpu", "float32"
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the result and its table."""
    args = parse(argv)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is how rollouts are replayed
    import torch

    torch.set_num_threads(1)
    small = argparse.Namespace(**(vars(args) | SMALLEST))
    seconds = take_turns({side: make(side, small, WARM_UP + args.steps) for side in SIDES})
    pairs = list(zip(*(seconds[side] for side in SIDES), strict=True))
    plain = take_turns({side: make(side, args, WARM_UP + LARGER) for side in SIDES})["tiles"]
    result = {
        "machine": machine(),
        "settings": {name: getattr(args, name) for name in SIZES},
        "median_ms": {side: [round(1000 * value, 3) for value in by_place(seconds[side])] for side in SIDES},
        "overhead_ms": round(overhead_ms(pairs), 3),
        "interval_ms": [round(value, 3) for value in interval_ms(pairs)],
        "step_ms": round(1000 * sum(by_place(plain)), 1),
        "profiled_percent": round(own_share(make("cispo", args, LARGER)), 3),
    }
    write_result(result, table(result), args.output, (RESULT, "overhead") if args == parse([]) else None)


def make(side: str, args: argparse.Namespace, steps: int) -> Any:
    return update.make(side, "nearly constant", 0, args, steps)


def take_turns(trainers: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Train them in a thread each, of which one runs at a time.

    Returns CPU seconds, of each step after the first ones, from the end of each micro-batch to that of the next.
    """
    import torch

    first, second = trainers
    size = trainers[first].args.gradient_accumulation_steps
    turns = trainers[first].args.max_steps * size
    order = [side for number in range(turns) for side in (first, second)[:: (-1) ** (number + number // size)]]
    done: list[str] = []
    errors: list[BaseException] = []
    changed = threading.Condition()
    seconds: dict[str, list[float]] = {side: [] for side in trainers}

    def wait_for_turn(side: str) -> None:
        with changed:
            changed.wait_for(lambda: errors or len(done) == len(order) or order[len(done)] == side)

    def hand_over_after(micro_batch: Any, side: str) -> Any:
        start = time.thread_time()

        def training_step(*inputs: Any, **named: Any) -> Any:
            nonlocal start
            loss = micro_batch(*inputs, **named)
            seconds[side].append(time.thread_time() - start)
            with changed:
                done.append(side)
                changed.notify_all()
            wait_for_turn(side)
            start = time.thread_time()
            return loss

        return training_step

    def train(side: str) -> None:
        torch.set_num_threads(1)  # each thread has its own
        trainer = trainers[side]
        trainer.training_step = hand_over_after(trainer.training_step, side)
        wait_for_turn(side)
        try:
            trainer.train()
        except BaseException as error:
            with changed:
                errors.append(error)
                changed.notify_all()

    threads = [threading.Thread(target=train, args=(side,)) for side in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    rows = {side: [values[i : i + size] for i in range(0, len(values), size)] for side, values in seconds.items()}
    return {side: steps[WARM_UP:] for side, steps in rows.items()}


Pair = tuple[list[float], list[float]]  # of a step of each side


def by_place(steps: list[list[float]]) -> list[float]:
    """Of each micro-batch in a step, the median over the steps."""
    return [statistics.median(place) for place in zip(*steps, strict=True)]


def overhead_ms(pairs: list[Pair]) -> float:
    """What a step of the first of each pair takes longer."""
    return 1000 * sum(by_place([[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]))


def interval_ms(pairs: list[Pair], samples: int = 2000) -> tuple[float, float]:
    """From the 2.5th to the 97.5th percentile of the overheads of samples with replacement."""
    draw = random.Random(0)
    found = statistics.quantiles((overhead_ms(draw.choices(pairs, k=len(pairs))) for _ in range(samples)), n=40)
    return found[0], found[-1]


def own_share(trainer: Any) -> float:
    """Percent of the CPU time of `trainer.train()` in functions of our package and C functions called by them."""
    profile = cProfile.Profile(time.thread_time)
    profile.runcall(trainer.train)
    ours = total = 0.0
    for (file, _, _), (_, _, own, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        total += own
        if file.startswith(PACKAGE):
            ours += own
        elif file == "~":  # a C function
            ours += sum(of_caller[2] for (caller, _, _), of_caller in callers.items() if caller.startswith(PACKAGE))
    return 100 * ours / total


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    machine, settings, step = result["machine"], result["settings"], result["step_ms"]
    milliseconds = [result["overhead_ms"], *result["interval_ms"]]
    percent = [100 * each / step for each in milliseconds]
    return "\n".join(
        [
            f"CPU time, torch {machine['torch']}, transformers {machine['transformers']}; {settings['steps']} steps; "
            f"TRL's step is that of a Llama of {settings['layers']} layers of {settings['hidden_size']}, float32.",
            "",
            "| overhead of a step | 95% interval | a step of TRL's | overhead | 95% interval | profiled in our code |",
            "|---|---|---|---|---|---|",
            "| {:.2f} ms | {:.2f} to {:.2f} ms ".format(*milliseconds)
            + f"| {step:.0f} ms "
            + "| {:.2f}% | {:.2f}% to {:.2f}% ".format(*percent)
            + f"| {result['profiled_percent']:.2f}% |",
        ]
    )


if __name__ == "__main__":
    main()
