"""Tokens a second, peak memory, and where a step's time goes, for random weights of the size of real models, in bf16.

    python -m benchmarks.throughput --device cuda --output throughput_cuda.json
    python -m benchmarks.throughput --models tiny --dtype float32 --prompts 2 --completion_length 8   a try on the CPU

`CISPOTrainer` beside TRL's `GRPOTrainer(loss_type="cispo")`: a model with the dimensions of Qwen2.5-0.5B or -1.5B
samples completions with transformers, has them scored by a cheap reward, and is trained on them once. Every completion
has the full length, so that lean updates have nothing to gain. Each run is a process of its own; the first two steps
are not counted.

Generation and rewards are what TRL's own two methods for them take; the update is the rest of a step without what
prepares its inputs. Its matrix rate counts 6 floating-point operations for each parameter and padded token that was
trained on (no attention, no recomputation), and is compared with what the device does in a multiplication of square
matrices in the same type, measured first.

Not run on a GPU so far: there was none at hand.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cost import SIDES, add_clock, make_trainer, peak_mib
from benchmarks.processes import one_process_each
from benchmarks.rewards import machine
from benchmarks.tables import write_result
from benchmarks.update import device_name, random_llama

QWEN = {"vocabulary": 151_936, "num_key_value_heads": 2}
MODELS: dict[str, dict[str, int]] = {
    "0.5B": {"hidden_size": 896, "layers": 24, "num_attention_heads": 14, "intermediate_size": 4864, **QWEN},
    "1.5B": {"hidden_size": 1536, "layers": 28, "num_attention_heads": 12, "intermediate_size": 8960, **QWEN},
    "tiny": {"hidden_size": 64, "layers": 2, "vocabulary": 500},
}
SIZES = {"prompts": 8, "group_size": 8, "micro_batch": 8, "completion_length": 512, "steps": 6}
NOT_COUNTED = 2  # steps
MATRIX = {"cuda": 8192, "cpu": 1024}  # rows


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["0.5B", "1.5B"], help="(default: 0.5B 1.5B)")
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the weights")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where the result goes; it is printed anyway")
    args = parser.parse_args(argv)
    if args.steps <= NOT_COUNTED:
        parser.error(f"--steps must be more than {NOT_COUNTED}: so many are not counted")
    if args.prompts * args.group_size % args.micro_batch:
        parser.error("--micro_batch must divide --prompts times --group_size")
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table and write the result."""
    args = parse(argv)
    from tqdm import tqdm

    jobs = [(side, name, args) for name in args.models for side in SIDES]
    with one_process_each() as pool:
        rate = pool.apply(matrix_rate, (args.device, args.dtype))
        runs = list(tqdm(pool.imap(measure, jobs), total=len(jobs), file=sys.stderr))
    result = {
        "machine": machine() | {"device": device_name(args.device)},
        "settings": {name: getattr(args, name) for name in SIZES} | {"dtype": args.dtype},
        "matrix_tflops": rate,
        "runs": runs,
    }
    write_result(result, table(result), args.output)


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, medians over the steps."""
    machine, settings = result["machine"], result["settings"]
    lines = [
        f"{machine['device']}, torch {machine['torch']}, {settings['dtype']}: {result['matrix_tflops']:.3g} TFLOP/s in "
        f"a multiplication of matrices. {settings['prompts']} prompts x {settings['group_size']} completions of "
        f"{settings['completion_length']} tokens a step.",
        "",
        "| model | trainer | tokens/s | peak memory | step | generation | rewards | update | its matrix rate |",
        "|" + "---|" * 9,
    ]
    for run in result["runs"]:
        middle = {name: statistics.median(values) for name, values in run["seconds"].items()}
        sampled = settings["prompts"] * settings["group_size"] * settings["completion_length"]
        tflops = 6 * run["parameters"] * statistics.median(run["tokens_trained"]) / middle["update"] / 1e12
        cells = [run["model"], SIDES[run["side"]], f"{sampled / middle['step']:,.0f}", f"{run['mib']:,.0f} MiB"]
        cells += [f"{middle['step']:.3f} s"]
        cells += [f"{middle[part] / middle['step']:.1%}" for part in ("generation", "rewards", "update")]
        cells += [f"{tflops:.3g} TFLOP/s ({tflops / result['matrix_tflops']:.0%})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# What follows runs in the processes that are measured.


def matrix_rate(device: str, dtype: str) -> float:
    """TFLOP/s of a multiplication of square matrices: the median of 10."""
    import torch

    rows, seconds = MATRIX[device], []
    a = torch.randn(rows, rows, device=device, dtype=getattr(torch, dtype))
    for _ in range(13):
        start = now(device)
        a @ a
        seconds.append(now(device) - start)
    return round(2 * rows**3 / statistics.median(seconds[3:]) / 1e12, 4)


def now(device: str) -> float:
    """When all work that was given to the device is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def measure(job: tuple[str, str, argparse.Namespace]) -> dict[str, Any]:
    """Seconds of each step that counts and of its parts, tokens that were trained on, and MiB."""
    side, name, args = job
    before = peak_mib(args.device)
    model = random_llama(dtype=args.dtype, **MODELS[name])
    sizes = {size: getattr(args, size) for size in SIZES if size != "steps"}
    trainer = make_trainer(side, model, args, **sizes)
    methods = {"generation": "_generate", "rewards": "_calculate_rewards", "inputs": "_prepare_inputs"}
    parts = {part: time_calls(trainer, method, args.device) for part, method in methods.items()}
    clock, trained = add_clock(trainer, args.device), count_trained(trainer)
    trainer.train()

    def by_step(values: list[float]) -> list[float]:
        """Sums over the calls of each step that counts: all parts have as many calls in each."""
        calls = len(values) // args.steps
        sums = [sum(values[start : start + calls]) for start in range(0, len(values), calls)]
        return sums[NOT_COUNTED:]

    seconds = {part: by_step(values) for part, values in parts.items()} | {"step": by_step(clock.seconds)}
    inputs = seconds.pop("inputs")
    seconds["update"] = [step - other for step, other in zip(seconds["step"], inputs, strict=True)]
    return {
        "model": name,
        "side": side,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": {part: [round(value, 4) for value in values] for part, values in seconds.items()},
        "tokens_trained": by_step(trained),
        "mib": round(peak_mib(args.device) - before, 1),
    }


def time_calls(trainer: Any, method: str, device: str) -> list[float]:
    """The seconds of each call of a method, from now on."""
    original, seconds = getattr(trainer, method), []

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = now(device)
        output = original(*args, **kwargs)
        seconds.append(now(device) - start)
        return output

    setattr(trainer, method, timed)
    return seconds


def count_trained(trainer: Any) -> list[float]:
    """The padded tokens of each forward that has a gradient, from now on."""
    import torch

    tokens: list[float] = []

    def count(model: Any, inputs: Any, named: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            tokens.append(named["input_ids"].numel())

    trainer.model.register_forward_pre_hook(count, with_kwargs=True)
    return tokens


if __name__ == "__main__":
    main()
