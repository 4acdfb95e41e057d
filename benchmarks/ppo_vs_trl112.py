"""Seconds and memory of a PPO update: ours against TRL 1.12's `PPOTrainer`, the last one that TRL had.

    python -m benchmarks.ppo_vs_trl112 [--device cuda] [--hidden_size 256 ...]

Both train the same random Llama from the same weights on the same prompts, with the same number of completions, of
tokens in each (none ends early), of epochs and of rows in a micro-batch, a reference model, and the same small reward
model. One update is a batch of completions and all passes over it. Each run is a process of its own; ours and TRL
1.12's take turns. TRL 1.12 is installed apart, into build/trl-1.12.0.

Memory is the peak of the process beyond what it had before the models were made (on a GPU, of allocated memory). A run
on the CPU without --output becomes the result that the project shows, and the table in benchmarks/README.md.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, write_result

ROOT = Path(__file__).parents[1]
OLD = ROOT / "build" / "trl-1.12.0"
RESULT = RESULTS / "ppo_vs_trl112.json"
REWARD_SIZE = 32
SIDES = ("ours", "trl112", "ours_trls_tiles")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    sizes = {
        "hidden_size": 256,
        "layers": 4,
        "vocabulary": 32_000,
        "rows": 16,
        "micro_batch": 8,
        "prompt_tokens": 32,
        "completion_tokens": 64,
        "epochs": 4,
        "updates": 4,
        "runs": 3,
    }
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where the result goes, see above")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.child:
        print(json.dumps(measure(args)))
        return
    if not (OLD / "trl").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(OLD), "trl==1.12.0"]
        subprocess.run(pip, check=True)
    sides = [side for side in SIDES if args.device == "cpu" or side != "ours_trls_tiles"]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(args.runs):
        for name in runs:
            runs[name].append(run(name, args))
            print(f"run {number + 1} of {args.runs}, {name}: {runs[name][-1]}", flush=True)
    result = summarize(runs, args)
    write_result(result, table(result), args.output, (RESULT, "ppo") if args.device == "cpu" else None)


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    paths = [str(OLD), str(ROOT)] if name == "trl112" else [str(ROOT)]  # TRL 1.12 goes before the installed one
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    options = [f"--{key}={value}" for key, value in vars(args).items() if key not in ("child", "output", "runs")]
    command = [sys.executable, "-m", "benchmarks.ppo_vs_trl112", *options, f"--child={name}"]
    done = subprocess.run(command, env=environment, cwd=tempfile.gettempdir(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def summarize(runs: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"settings": {k: v for k, v in vars(args).items() if k not in ("child", "output")}}
    result["hardware"] = runs["ours"][0]["hardware"]
    for name, measured in runs.items():
        seconds = [second for one in measured for second in one["seconds"]]
        result[name] = {
            "trl": measured[0]["trl"],
            "seconds": round(statistics.median(seconds), 3),
            "mib": round(statistics.median(one["mib"] for one in measured), 1),
        }
    for key in ("seconds", "mib"):
        result[f"{key}_ratio"] = round(result["ours"][key] / result["trl112"][key], 3)
    return result


def table(result: dict[str, Any]) -> str:
    names = {"ours": "trl-ext", "ours_trls_tiles": "trl-ext, TRL's tiles", "trl112": "TRL 1.12"}
    sides = [side for side in names if side in result]
    heads = [f"{names[side]} (TRL {result[side]['trl']})" if side == "ours" else names[side] for side in sides]
    lines = [f"| {result['hardware']} | {' | '.join(heads)} | trl-ext / TRL 1.12 |", "|---" * (2 + len(sides)) + "|"]
    for key, label, digits in (("seconds", "seconds an update", 2), ("mib", "peak memory, MiB", 0)):
        cells = [f"{result[side][key]:.{digits}f}" for side in sides]
        lines.append(f"| {label} | {' | '.join(cells)} | {result[f'{key}_ratio']:.2f} |")
    return "\n".join(lines)


# What follows runs in the processes that are measured.


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers
    import trl

    trainer_class = make_trl112 if args.child == "trl112" else make_ours
    trainer_class(args, dry=True)  # imports
    if args.child == "ours_trls_tiles":
        from trl_ext.trainers import head_tiles

        head_tiles.small_tiles = contextlib.nullcontext
    torch.set_num_threads(os.cpu_count() or 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer = trainer_class(args)

    class Clock(transformers.TrainerCallback):
        ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if args.device == "cuda":
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

    trainer.add_callback(Clock)
    trainer.train()
    # An update of ours is several optimizer steps of the Trainer; TRL 1.12 calls a whole one a step.
    ends = Clock.ends if args.child == "trl112" else Clock.ends[args.epochs - 1 :: args.epochs]
    if args.device == "cuda":
        peak, hardware = torch.cuda.max_memory_allocated() / 2**20, torch.cuda.get_device_name()
    else:
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
        hardware = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    seconds = [later - earlier for earlier, later in itertools.pairwise(ends)]
    return {"seconds": [round(s, 3) for s in seconds], "mib": peak, "trl": trl.__version__, "hardware": hardware}


def make_models(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    def config(hidden: int, layers: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=args.vocabulary,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=max(1, hidden // 64),
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=1,
            num_labels=1,
        )

    torch.manual_seed(0)
    big = config(args.hidden_size, args.layers)
    return {
        "policy": LlamaForCausalLM(big),
        "critic": (lambda: LlamaForSequenceClassification(big)),
        "reward": LlamaForSequenceClassification(config(REWARD_SIZE, 1)),
    }


def make_tokenizer(args: argparse.Namespace) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, args.vocabulary)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w2"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def common(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": args.micro_batch,
        "gradient_accumulation_steps": args.rows // args.micro_batch,
        "num_ppo_epochs": args.epochs,
        "num_mini_batches": 1,
        "response_length": args.completion_tokens,
        "temperature": 1.0,
        "learning_rate": 1e-6,
        "use_cpu": args.device == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "dataloader_pin_memory": False,
    }


def make_ours(args: argparse.Namespace, dry: bool = False) -> Any:
    from datasets import Dataset

    from trl_ext import PPOConfig, PPOTrainer

    if dry:
        return None
    models, tokenizer = make_models(args), make_tokenizer(args)
    folder = tempfile.mkdtemp()
    models["policy"].save_pretrained(folder)  # TRL reads the reference model from where the policy came from
    del models["policy"]
    words = [
        f"w{2 + (i * 7919 + j * 104729) % (args.vocabulary - 2)}" for i in range(256) for j in range(args.prompt_tokens)
    ]
    prompts = [" ".join(words[i : i + args.prompt_tokens]) for i in range(0, len(words), args.prompt_tokens)]
    return PPOTrainer(
        model=folder,
        reward_funcs=models["reward"],
        reward_processing_classes=tokenizer,
        processing_class=tokenizer,
        args=PPOConfig(
            **common(args),
            kl_coef=0.05,
            max_steps=args.updates * args.epochs,
            generation_kwargs={"suppress_tokens": [0, 1]},
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
    )


def make_trl112(args: argparse.Namespace, dry: bool = False) -> Any:
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: TID251

    if dry:
        return None
    models, tokenizer = make_models(args), make_tokenizer(args)
    ids = [[2 + (i * 7919 + j * 104729) % (args.vocabulary - 2) for j in range(args.prompt_tokens)] for i in range(256)]
    return PPOTrainer(
        args=PPOConfig(**common(args), total_episodes=args.updates * args.rows, num_sample_generations=0),
        processing_class=tokenizer,
        model=models["policy"],
        ref_model=None,  # it makes a copy of the policy
        reward_model=models["reward"],
        value_model=models["critic"](),
        train_dataset=Dataset.from_dict({"input_ids": ids}),
    )


if __name__ == "__main__":
    main()
