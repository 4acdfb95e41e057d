"""The subcommand `trl-ext worker`."""

import argparse
import logging
import os
from typing import Any

from trl_ext.errors import ConfigError, MissingExtraError

_EPILOG = """\
The token comes from --token or, better, as other users of a machine see its commands, from TRL_EXT_TOKEN.
Workers may come and go at any time: what one of them was playing is played anew by another.

examples:
  trl-ext worker --server http://gpu-host:8000 --env email_search --concurrency 16
  TRL_EXT_TOKEN=... trl-ext worker --server https://train.example.org --env my_package.my_module:MyEnvironment
"""


def add_worker(commands: Any) -> None:
    """Add the subcommand."""
    from trl_ext.agents.registry import list_environments

    summary = "play episodes for a trainer on another machine (recipes/agent.py --serve)"
    parser = commands.add_parser(
        "worker",
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--server", required=True, metavar="URL", help="http://HOST:PORT of the trainer")
    parser.add_argument("--env", required=True, help=f"{', '.join(list_environments())}, or module:Class")
    parser.add_argument("--env_options", default="{}", metavar="JSON", help="options of the environment, as JSON")
    parser.add_argument("--concurrency", type=int, default=1, help="episodes at a time (default: %(default)s)")
    parser.add_argument("--name", help="as the server's page shows it (default: of this machine and process)")
    parser.add_argument("--token", default=os.environ.get("TRL_EXT_TOKEN") or None, help="of the server")
    parser.add_argument("--step_timeout", type=float, default=60, help="seconds for a step (default: %(default)s)")
    parser.add_argument("--give_up", type=float, metavar="SECONDS", help="without a server (default: never)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from trl_ext.agents.cli import json_object
    from trl_ext.agents.registry import make_environment

    try:
        from trl_ext.serving.worker import Worker, run_worker
    except ImportError as error:
        raise MissingExtraError(f"a worker needs {error.name}: pip install 'trl-ext[serve]'") from None
    options = json_object(args.env_options)
    make_environment(args.env, **options).close()  # what is wrong with it is said now
    if args.name is not None and not (args.name.isascii() and args.name.replace("-", "").replace("_", "").isalnum()):
        raise ConfigError(f"--name {args.name!r}: letters, digits, - and _ only")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    worker = Worker(
        args.server,
        lambda: make_environment(args.env, **options),
        [args.env],
        args.concurrency,
        args.token,
        args.name,
        args.step_timeout,
        args.give_up,
    )
    run_worker(worker)
    print(f"{worker.played} episodes played")
