"""The command `trl-ext`."""

import argparse
import contextlib
import json
import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trl_ext.agents.cli import add_evaluate
from trl_ext.agents.trajectory_cli import add_trajectories
from trl_ext.errors import ConfigError, ModelNotFoundError, OutputDirError, TrlExtError
from trl_ext.scaling.command import add_pick
from trl_ext.serving.cli import add_worker


def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv` (default: the program's own). A wrong argument ends the program with one line."""
    args = _parser().parse_args(argv)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import warns of a kernel that nothing here uses
    try:
        args.run(args)
    except TrlExtError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trl-ext", description="Tools around the trainers, rewards, agents and configs of trl-ext."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    rewards = commands.add_parser("rewards", help="list reward types, check and try out reward specs")
    actions = rewards.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Any, summary: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.add_argument("--plugins", nargs="*", default=[], metavar="FILE.py", help="files that register reward types")
        sub.set_defaults(run=run)
        return sub

    action("list", _list, "list the reward types with their range, what they need and what they cost")
    show = action("show", _show, "show one reward type: its options, range, source and an example")
    show.add_argument("type", help="the name of a reward type, or of what combines several")
    action("schema", _schema, "print the JSON Schema of reward specs, so that editors complete them")
    score = action("score", _score, "score the completions of a file with a spec, to see what the spec does")
    score.add_argument("--spec", required=True, help="the reward spec: a JSON file or a JSON string")
    score.add_argument(
        "--data", required=True, metavar="FILE.jsonl", help="rows with `completion`, `prompt` and columns"
    )
    score.add_argument("--output", metavar="FILE.parquet", help="where the rows with their scores go")
    score.add_argument("--histogram", metavar="FILE.png", help="where a picture of the scores goes")
    score.add_argument("--batch_size", type=int, default=512, help="completions per call (default: %(default)s)")

    accelerate = commands.add_parser(
        "accelerate", help="choose a config of `accelerate launch` for a model and a cluster"
    )
    add_pick(accelerate.add_subparsers(required=True, metavar="ACTION"), config_of)
    add_evaluate(commands, builtin_model)
    add_trajectories(commands)
    add_worker(commands)
    return parser


def builtin_model(name: str) -> str:
    """The folder of the built-in model that comes with its weights; any other name as it is."""
    if name == "builtin:smollm2":
        from trl_ext.builtin.smollm2 import smollm2_path

        return str(smollm2_path())
    if name.startswith("builtin:"):
        raise ConfigError(
            f"--model {name!r}: builtin:smollm2 comes with its weights; builtin:tiny is fitted by a recipe, give the "
            "folder start_model in its output_dir"
        )
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)):
        raise ModelNotFoundError(f"--model {name!r}: there is no such folder, and it is no name of the Hub")
    return name


def config_of(name: str) -> Any:
    """The config of a model by its name: a built-in one, a folder, or one of the Hub. No weights are read."""
    if name == "builtin:tiny":
        from trl_ext.builtin.tiny_model import tiny_model

        return tiny_model().config
    if name.startswith("builtin:") and name != "builtin:smollm2":
        raise ConfigError(f"--model {name!r}: the built-in models are builtin:tiny and builtin:smollm2")
    name = builtin_model(name)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"--model {name!r}: its config cannot be read: {textwrap.shorten(str(error), 250, placeholder=' ...')}"
        ) from None


def _list(args: argparse.Namespace) -> None:
    from trl_ext.rewards.catalog import catalog_table
    from trl_ext.rewards.plugins import load_plugins
    from trl_ext.rewards.spec import COMPOSITES

    load_plugins(args.plugins)
    print(f"{catalog_table()}\n\nof several components: {', '.join(COMPOSITES)}")


def _show(args: argparse.Namespace) -> None:
    from trl_ext.rewards.catalog import describe
    from trl_ext.rewards.plugins import load_plugins

    load_plugins(args.plugins)
    print(describe(args.type))


def _schema(args: argparse.Namespace) -> None:
    from trl_ext.rewards.catalog import json_schema
    from trl_ext.rewards.plugins import load_plugins

    load_plugins(args.plugins)
    print(json.dumps(json_schema(), indent=2))


def _score(args: argparse.Namespace) -> None:
    import pandas as pd
    from tqdm import tqdm

    from trl_ext.rewards import make_reward

    for option in ("output", "histogram"):
        path = getattr(args, option)
        if path and not Path(path).absolute().parent.is_dir():
            raise ConfigError(f"--{option} {path!r}: there is no such folder")
        if path and Path(path).is_dir():
            raise ConfigError(f"--{option} {path!r} is a folder: give the name of a file")
    reward = make_reward(args.spec, args.plugins)
    scores: dict[str, list[float | None]] = {part.__name__: [] for part in reward.parts()}
    rows = _read_rows(args.data)
    with tqdm(total=len(rows), unit=" completions", disable=None) as progress:
        for batch in _batches(rows, args.batch_size):
            columns = {name: [row.get(name) for row in batch] for name in sorted({key for row in batch for key in row})}
            completions, prompts = columns.pop("completion"), columns.pop("prompt", None)
            for name, part in reward.breakdown(completions, prompts, **columns).items():
                scores[name] += part
            progress.update(len(batch))
    table = pd.DataFrame(scores, dtype="float64")
    print(_summary(table))
    if args.output:
        columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}
        stored = pd.DataFrame({name: _storable(name, column) for name, column in columns.items()})
        with _written("output", args.output):
            stored.assign(**table.add_prefix("score_")).to_parquet(args.output)
    if args.histogram:
        with _written("histogram", args.histogram):
            _histogram(table, args.histogram)


@contextlib.contextmanager
def _written(option: str, path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # a ValueError: no format has this ending
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise OutputDirError(f"--{option} {path!r} cannot be written: {reason}") from None


def _storable(name: str, column: list[Any]) -> list[Any]:
    """A column for Parquet, where one has text or numbers or truth values: anything else as JSON, chats as text."""
    import pyarrow  # type: ignore[import-untyped]

    from trl_ext.agents.environment import encodable
    from trl_ext.rewards.text import as_text

    if name in ("completion", "prompt"):
        return [encodable(as_text(value)) for value in column]
    try:
        if not pyarrow.types.is_nested(pyarrow.array(column).type):
            return column
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
        pass
    return [None if value is None else json.dumps(value) for value in column]


def _read_rows(path: str) -> list[dict[str, Any]]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # JSON may have other ends of lines in a text
    except OSError as error:
        raise ConfigError(f"--data {path!r} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--data {path!r} is no text in UTF-8: {error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{number} is not JSON: {error}") from None
        if not isinstance(row, dict) or "completion" not in row:
            raise ConfigError(f"{path}:{number}: must be an object with a 'completion'")
        rows.append(row)
    if not rows:
        raise ConfigError(f"{path} is empty: it must have a row per completion")
    return rows


def _batches(rows: list[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    if size < 1:
        raise ConfigError(f"--batch_size = {size}: must be at least 1")
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _summary(table: Any) -> str:
    lines = [f"{'':<28}{'mean':>10}{'std':>10}{'min':>10}{'max':>10}{'None':>8}"]
    for name, column in table.items():
        known = column.dropna()
        numbers = [known.mean(), known.std(ddof=0), known.min(), known.max()]
        lines.append(f"{name:<28}" + "".join(f"{x:>10.4f}" for x in numbers) + f"{column.isna().sum():>8}")
    return "\n".join(lines)


def _histogram(table: Any, path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1.2 + 1.5 * len(table.columns)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(table.columns), 1, squeeze=False)[:, 0]
    for axis, (name, column) in zip(axes, table.items(), strict=True):
        axis.hist(column.dropna(), bins=30, color="C0")
        axis.set_title(f"{name} ({column.isna().sum()} not scored)", fontsize="small", loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("score")
    figure.supylabel("completions", fontsize="small")
    figure.savefig(path, dpi=150)
