"""The subcommand `trl-ext evaluate`."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_ext.errors import ConfigError, OutputDirError

_EPILOG = """\
players by name: every environment has `random` and `scripted`; game_2048 has `expectimax`, email_search `keywords`.
Any other name is a model: a folder with a checkpoint, a model of the Hub, or builtin:smollm2.

examples:
  trl-ext evaluate --env game_2048 --env_options '{"stop_at_target": true}' --model random expectimax --episodes 20
  trl-ext evaluate --env grid_world --model random outputs/start_model outputs/checkpoint-400 --max_new_tokens 1
  trl-ext evaluate --env my_package.my_module:MyEnvironment --model ./my_model --episodes 200 --temperature 1
"""


def add_evaluate(commands: Any, find_model: Callable[[str], str] = str) -> None:
    """Add the subcommand. `find_model` turns the name of a model into what transformers loads."""
    from trl_ext.agents.registry import list_environments

    summary = "play episodes in an environment and say how well models and scripted players do"
    parser = commands.add_parser(
        "evaluate",
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--env", required=True, help=f"{', '.join(list_environments())}, or module:Class")
    parser.add_argument("--env_options", default="{}", metavar="JSON", help="options of the environment, as JSON")
    parser.add_argument("--model", required=True, nargs="+", help="players and models, side by side")
    parser.add_argument("--episodes", type=int, default=100, help="episodes for each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed: the same tasks (default: %(default)s)")
    parser.add_argument("--output", metavar="DIR", help="where evaluation.json, evaluation.png and the episodes go")
    parser.add_argument("--concurrency", type=int, default=64, help="episodes at a time (default: %(default)s)")
    parser.add_argument("--step_timeout", type=float, default=60, help="seconds for a step (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of a model; 0: the likeliest token (default)")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="of a model's reply (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="replies generated at once (default: %(default)s)")
    parser.set_defaults(run=lambda args: _run(args, find_model))


def _run(args: argparse.Namespace, find_model: Callable[[str], str]) -> None:
    from trl_ext.agents.evaluate import evaluate
    from trl_ext.agents.evaluation_report import plot, table, write_json
    from trl_ext.agents.players import Player
    from trl_ext.agents.registry import make_environment
    from trl_ext.agents.trajectory import write_trajectories

    options = json_object(args.env_options)
    environment = make_environment(args.env, **options)

    def make_player(name: str) -> Player:
        if name in environment.players:
            return environment.players[name](args.seed)
        if not name.startswith("builtin:") and not Path(name).exists() and re.fullmatch(r"\w+", name):
            known = ", ".join(environment.players) or "none"
            raise ConfigError(f"--model {name!r}: neither a folder nor a player of {args.env} ({known})")
        from trl_ext.agents.transformers_player import TransformersPlayer

        return TransformersPlayer(
            find_model(name), args.temperature, args.max_new_tokens, args.batch_size, seed=args.seed
        )

    output = _make_folder(args.output) if args.output else None
    scores = []
    for name in args.model:
        score, trajectories = evaluate(
            lambda: make_environment(args.env, **options),
            make_player(name),
            args.episodes,
            args.seed,
            name,
            args.concurrency,
            args.step_timeout,
        )
        scores.append(score)
        if output:
            stem = re.sub(r"[^\w.-]+", "_", name).strip("_.") or "model"
            write_trajectories(output / f"{stem}.jsonl", trajectories)
        failures = [one.failure for one in trajectories if one.failure]
        if failures:
            print(f"{name}: {len(failures)} of {args.episodes} episodes failed, the first with {failures[0]}")
    print(table(scores))
    if output:
        write_json(scores, output / "evaluation.json", env=args.env, env_options=options, seed=args.seed)
        plot(scores, output / "evaluation.png", f"{args.env}, {args.episodes} episodes")


def json_object(text: str) -> dict[str, Any]:
    """The environment's options, from the command line.

    Raises:
        ConfigError: it is no JSON object.
    """
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--env_options {text!r}: not JSON: {error}") from None
    if not isinstance(options, dict):
        raise ConfigError(f"--env_options {text!r}: must be a JSON object")
    return options


def _make_folder(name: str) -> Path:
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputDirError(f"--output {name!r} cannot be made: {error.strerror or error}") from None
    return Path(name)
