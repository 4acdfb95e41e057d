"""How long rewards take for a batch, against one call of the library for each completion.

    python -m benchmarks.rewards                           all of them, about 12 minutes on 2 cores
    python -m benchmarks.rewards --only math rouge_l       some of them, only printed; --record them
    python -m benchmarks.rewards --completions 16 --repeats 1 --seconds 0     a try, in a minute

Each reward scores a batch of completions (by default 512, 8 to a prompt) that is drawn anew for each repeat, so that
nothing is in a cache. Quick rewards are repeated up to ten times as often, until --seconds are measured. In the same
run, before or after it in turns, a naive reward factory scores the first of the same completions, all of them where it
is not too slow: a scorer or model of the same library that is loaded once and then called once for each completion and
its reference. Times are for a completion. Both must give the same scores, within the tolerance that the result shows,
or the run stops. Both sides have scored a batch before: models are loaded, worker processes run, and what a parser
builds when it meets a form for the first time is built.

The result is the median over the repeats. It goes to --output as JSON. A run of all rewards with 512 completions and
without --output becomes the result that the project shows: results/rewards.json, and the table in benchmarks/README.md.
With --record a run of some becomes their rows in it.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import reward_data as data
from benchmarks import reward_peers as peers
from benchmarks.reward_data import GROUP, Rows
from benchmarks.reward_peers import Peer
from benchmarks.tables import RESULTS, write_result

RESULT = RESULTS / "rewards.json"
SENTIMENT = ["negative", "neutral", "positive"]
PATTERN = r".*[a-z]{4,} [a-z]{4,}\."
ENTAILMENT = ["contradiction", "neutral", "entailment"]


@dataclass
class Case:
    """A reward and its peer. `make` gets a folder for checkpoints and returns the reward's spec and the peer.

    `naive` is how many completions the peer scores at most.
    """

    peer: str
    make: Callable[[Path], tuple[dict[str, Any], Peer]]
    rows: Callable[[int, int], Rows] = data.prose
    naive: int = 512
    tolerance: float = 1e-9
    note: str = ""


def plain(name: str, peer: Callable[[], Peer], **options: Any) -> Callable[[Path], tuple[dict[str, Any], Peer]]:
    """A case without a checkpoint."""
    return lambda folder: ({"type": name, **options}, peer())


def with_bert(
    name: str, labels: list[str], peer: Callable[[str], Peer]
) -> Callable[[Path], tuple[dict[str, Any], Peer]]:
    """A case with a random checkpoint."""

    def make(folder: Path) -> tuple[dict[str, Any], Peer]:
        path = peers.random_bert(folder, labels)
        return {"type": name, "model": path}, peer(path)

    return make


def with_minilm(name: str, option: str, peer: Callable[[str], Peer]) -> Callable[[Path], tuple[dict[str, Any], Peer]]:
    """A case with the MiniLM of the wheel."""
    return lambda folder: ({"type": name, option: peers.minilm()}, peer(peers.minilm()))


def with_smollm2(name: str, given_prompt: bool) -> Callable[[Path], tuple[dict[str, Any], Peer]]:
    """A case with the SmolLM2 of the wheel."""

    def make(folder: Path) -> tuple[dict[str, Any], Peer]:
        from trl_ext.builtin.smollm2 import smollm2_path

        path = str(smollm2_path())
        return {"type": name, "model": path}, peers.language_model(path, given_prompt)

    return make


def own(spec: dict[str, Any]) -> Callable[[Path], tuple[dict[str, Any], Peer]]:
    """A case of a reward that leans on no library: itself, one completion at a time."""
    return lambda folder: (spec, peers.one_at_a_time(spec))


CASES = {
    "rouge_l": Case("rouge_score", plain("rouge_l", lambda: peers.rouge("rougeL"))),
    "rouge_1": Case("rouge_score", plain("rouge_1", lambda: peers.rouge("rouge1"))),
    "levenshtein": Case(
        "nltk.edit_distance", plain("levenshtein", lambda: peers.edit_distance(by_words=False)), naive=32
    ),
    "levenshtein_rapidfuzz": Case("rapidfuzz", plain("levenshtein", peers.rapidfuzz)),
    "ter": Case(
        "sacrebleu TER",
        plain("ter", lambda: peers.sacrebleu("TER")),
        naive=16,
        tolerance=0.5,
        note="sacrebleu also takes a moved run of words for one edit, and looks for edits in a band of 25 words",
    ),
    "ter_nltk": Case(
        "nltk.edit_distance of words", plain("ter", lambda: peers.edit_distance(by_words=True)), naive=128
    ),
    "bleu": Case(
        "sacrebleu BLEU", plain("bleu", lambda: peers.sacrebleu("BLEU", effective_order=True, lowercase=True))
    ),
    "chrf": Case("sacrebleu CHRF", plain("chrf", lambda: peers.sacrebleu("CHRF"))),
    "meteor": Case("nltk, without WordNet", plain("meteor", peers.meteor)),
    "math": Case("trl accuracy_reward", plain("math", peers.accuracy_reward), rows=data.mathematics, naive=256),
    "code": Case("a Python process per test", plain("code", peers.python_processes), rows=data.programs, naive=64),
    "cosine_sts": Case(
        "SentenceTransformer.encode",
        with_minilm("cosine_sts", "model", peers.sentence_transformer),
        naive=128,
        tolerance=1e-5,
    ),
    "bertscore": Case(
        "transformers forwards", with_minilm("bertscore", "model_type", peers.bert_score), naive=128, tolerance=1e-5
    ),
    "sentiment": Case(
        "transformers pipeline",
        with_bert("sentiment", SENTIMENT, lambda path: peers.text_classification(path, "positive")),
        naive=128,
        tolerance=1e-4,
    ),
    "nli": Case(
        "transformers pipeline",
        with_bert("nli", ENTAILMENT, lambda path: peers.text_classification(path, "entailment", pair=True)),
        naive=128,
        tolerance=1e-4,
    ),
    "reward_model": Case(
        "transformers forward", with_bert("reward_model", ["score"], peers.reward_model), naive=128, tolerance=1e-4
    ),
    "perplexity": Case(
        "transformers forward", with_smollm2("perplexity", given_prompt=False), naive=64, tolerance=0.01
    ),
    "gptscore": Case("transformers forward", with_smollm2("gptscore", given_prompt=True), naive=64, tolerance=0.01),
    "json_schema": Case(
        "jsonschema.validate",
        plain("json_schema", lambda: peers.jsonschema(data.SCHEMA), schema=data.SCHEMA),
        rows=data.json_objects,
    ),
    "spelling": Case("pyspellchecker", plain("spelling", peers.spellchecker)),
    "readability": Case("itself", own({"type": "readability", "min": 60, "soft": 30})),
    "grammar": Case("itself", own({"type": "grammar"})),
    "sentiment_lexicon": Case("itself", own({"type": "sentiment_lexicon"})),
    "format": Case(
        "regex, with the time limit", plain("format", lambda: peers.pattern(PATTERN, timeout=1.0), pattern=PATTERN)
    ),
    "format_re": Case(
        "re, which has no time limit", plain("format", lambda: peers.pattern(PATTERN, timeout=None), pattern=PATTERN)
    ),
    "length": Case("len(text.split())", plain("length", lambda: peers.word_count(70, 150), min=70, max=150)),
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rewards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument(
        "--completions", type=int, default=512, help="of a batch; slow peers get its first (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="batches at least (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of both sides together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where the result goes, see above")
    parser.add_argument("--record", action="store_true", help="make it a part of the result that the project shows")
    args = parser.parse_args(argv)
    if args.completions < GROUP or args.repeats < 1:
        parser.error(f"--completions must be {GROUP} or more, --repeats 1 or more")
    if args.record and (args.completions != 512 or args.output is not None):
        parser.error("--record goes with 512 completions and without --output")
    args.record |= args.output is None and args.only == list(CASES) and args.completions == 512
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the result and its table."""
    args = parse(argv)
    from tqdm import tqdm

    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(args.only), file=sys.stderr) as bar:
        rows = [measure(name, args, Path(folder, name), bar) for name in args.only]
    result = {"machine": machine(), "seed": args.seed, "rewards": rows}
    if args.record:
        recorded = json.loads(RESULT.read_text())["rewards"] if args.only != list(CASES) else []
        measured = {row["reward"]: row for row in [*recorded, *rows]}
        result["rewards"] = [measured[name] for name in CASES if name in measured]
    write_result(result, table(result), args.output, (RESULT, "rewards") if args.record else None)


def measure(name: str, args: argparse.Namespace, folder: Path, bar: Any) -> dict[str, Any]:
    """The seconds of both sides for each repeat, and the largest difference of their scores.

    Raises:
        SystemExit: the scores differ by more than the tolerance.
    """
    from trl_ext import make_reward

    case = CASES[name]
    spec, peer = case.make(folder)
    reward = make_reward(spec)
    prompts = args.completions // GROUP
    naive = min(prompts * GROUP, case.naive)

    def ours(rows: Rows) -> list[float | None]:
        return reward(rows.completions, prompts=rows.prompts, target=rows.target)

    def theirs(rows: Rows) -> list[float | None]:
        rows = rows.head(naive)
        return [peer(*row) for row in zip(rows.completions, rows.prompts, rows.target, strict=True)]

    warm = case.rows(args.seed + 10 * args.repeats, prompts)
    ours(warm), theirs(warm)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    difference = 0.0
    repeat = 0
    while repeat < args.repeats or (repeat < 10 * args.repeats and sum(map(sum, seconds.values())) < args.seconds):
        rows = case.rows(args.seed + repeat, prompts)
        sides = [("ours", ours), ("theirs", theirs)]
        scores = {}
        for side, score in sides if repeat % 2 else sides[::-1]:
            bar.set_description(f"{name}, {side}")
            start = time.perf_counter()
            scores[side] = score(rows)
            seconds[side].append(time.perf_counter() - start)
        difference = max(difference, compare(name, scores["ours"][:naive], scores["theirs"]))
        repeat += 1
    bar.update()
    counts = {"ours": prompts * GROUP, "theirs": naive}
    each = {side: statistics.median(seconds[side]) / counts[side] for side in counts}
    return {
        "reward": name,
        "type": spec["type"],
        "peer": case.peer,
        "completions": counts,
        "seconds": {side: [round(second, 4) for second in measured] for side, measured in seconds.items()},
        "ratio": float(f"{each['theirs'] / each['ours']:.3g}"),
        "largest_difference": float(f"{difference:.1g}"),
        "tolerance": case.tolerance,
        "note": case.note,
    }


def compare(name: str, ours: list[float | None], theirs: list[float | None]) -> float:
    """The largest difference of two lists of scores.

    Raises:
        SystemExit: it is more than the tolerance, or one side has a score where the other has none.
    """
    case, largest = CASES[name], 0.0
    for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a is None or b is None:
            same = a is b
        else:
            largest = max(largest, abs(a - b))
            same = abs(a - b) <= case.tolerance
        if not same:
            raise SystemExit(f"{name}: completion {row} has {a} by trl-ext and {b} by {case.peer}")
    return largest


def machine() -> dict[str, Any]:
    """What the times depend on."""
    import torch
    import transformers

    cores = len(os.sched_getaffinity(0))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"cpu_cores": cores, "torch_threads": torch.get_num_threads(), "device": "cpu", **versions}


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    machine = result["machine"]
    lines = [
        f"{machine['cpu_cores']} CPU cores, torch {machine['torch']}, transformers {machine['transformers']}; "
        "medians over the batches, in milliseconds for a completion.",
        "",
        "| reward | one at a time | so many | ms | trl-ext: so many | ms | batches | times faster | scores differ by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rewards"]:
        counts = row["completions"]
        ours, theirs = (
            f"{1000 * statistics.median(row['seconds'][side]) / counts[side]:.3g}" for side in ("ours", "theirs")
        )
        ratio = f"{row['ratio']:.{2 if row['ratio'] < 10 else 1 if row['ratio'] < 100 else 0}f}"
        difference = f"{row['largest_difference']:.0e}" if row["largest_difference"] > 1e-12 else "0"
        naive, batch = str(counts["theirs"]), str(counts["ours"])
        batches = str(len(row["seconds"]["ours"]))
        cells = [f"`{row['reward']}`", row["peer"], naive, theirs, batch, ours, batches, ratio, difference]
        lines.append(f"| {' | '.join(cells)}{' (*)' if row['note'] else ''} |")
    notes = [f"(*) `{row['reward']}`: {row['note']}." for row in result["rewards"] if row["note"]]
    return "\n".join([*lines, *([""] if notes else []), *notes])


if __name__ == "__main__":
    main()
