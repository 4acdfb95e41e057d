"""The subcommand `trl-ext trajectories`."""

import argparse
from typing import Any

_EPILOG = """\
FILE is a .jsonl or .parquet file of a recorder or of `trl-ext evaluate --output`, or a recorder's folder.

examples:
  trl-ext trajectories stats outputs/agent/trajectories
  trl-ext trajectories show outputs/agent/trajectories --episode 12
  trl-ext trajectories show outputs/agent/trajectories/train_000010_p0_000.jsonl
"""


def add_trajectories(commands: Any) -> None:
    """Add the subcommand."""
    summary = "look at recorded episodes: one turn by turn, or a table of all"
    parser = commands.add_parser(
        "trajectories",
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("show", help="replay one episode turn by turn", description="Replay one episode.")
    show.add_argument("file", metavar="FILE", help="a .jsonl or .parquet file, or a folder of them")
    show.add_argument("--episode", type=int, default=0, help="its place in the file, from 0 (default: %(default)s)")
    show.set_defaults(run=_show)
    stats = actions.add_parser(
        "stats", help="success, reward, turns, tokens and failures, by step", description="Sum up many episodes."
    )
    stats.add_argument("file", metavar="FILE", help="a .jsonl or .parquet file, or a folder of them")
    stats.set_defaults(run=_stats)


def _show(args: argparse.Namespace) -> None:
    from trl_ext.agents.trajectory import read_trajectories
    from trl_ext.agents.trajectory_view import replay

    print(replay(read_trajectories(args.file), args.episode))


def _stats(args: argparse.Namespace) -> None:
    from trl_ext.agents.trajectory import read_trajectories
    from trl_ext.agents.trajectory_view import stats

    print(stats(read_trajectories(args.file)))
