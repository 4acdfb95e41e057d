"""Where the episodes of recipes/agent.py are played: in the trainer's process, or by workers at a server."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trl_ext.agents.batch_rollout import Recorder
from trl_ext.agents.rollout import environment_rollout
from trl_ext.agents.sampled_episode import DEFAULT_TURNS
from trl_ext.errors import ConfigError, MissingExtraError
from trl_ext.recipe.agent_task import AgentArguments, environment_of

TOKEN = "TRL_EXT_TOKEN"


@contextlib.contextmanager
def agent_rollout(
    agent_args: AgentArguments, model: str, recorders: Sequence[Recorder]
) -> Iterator[Callable[..., dict[str, Any]]]:
    """The rollout function that the arguments ask for; its environments, or a server, are closed at the end.

    Raises:
        ConfigError: `serve` is no address, or others could use the server without a token.
    """
    shared: dict[str, Any] = {
        "max_turns": agent_args.max_turns,
        "max_turn_tokens": agent_args.max_turn_tokens,
        "max_failures": agent_args.max_failures,
        "recorder": recorders,
    }
    if agent_args.serve is None:
        rollout = environment_rollout(
            lambda: environment_of(agent_args), step_timeout=agent_args.step_timeout, **shared
        )
        with contextlib.closing(rollout):
            yield rollout
        return
    try:
        from trl_ext.serving.ledger import Rules
        from trl_ext.serving.options import ServerOptions
        from trl_ext.serving.rollout import remote_rollout
        from trl_ext.serving.server import RolloutServer, in_main_process
    except ImportError as error:
        raise MissingExtraError(f"--serve needs {error.name}: pip install 'trl-ext[serve]'") from None
    host, port = address(agent_args.serve)
    token = agent_args.serve_token or os.environ.get(TOKEN)
    options = ServerOptions(host=host, port=port, token=token, public_url=agent_args.public_url)
    rules = Rules(episode_timeout=agent_args.episode_timeout, max_policy_lag=agent_args.max_policy_lag)
    with RolloutServer(options, rules, model) as server:
        if in_main_process():
            reach = agent_args.public_url or server.url
            print(f"Serving at {reach}: trl-ext worker --server {reach} --env {agent_args.environment}", flush=True)
        shared["max_turns"] = agent_args.max_turns or _turns_of(agent_args)
        yield remote_rollout(server, environment=agent_args.environment, wait_for=agent_args.wait_for, **shared)


def _turns_of(agent_args: AgentArguments) -> int:
    """The environment's own limit, which the server, where none of its kind is, has to be told."""
    environment = environment_of(agent_args)
    environment.close()
    return environment.max_turns or DEFAULT_TURNS


def address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[::1]:PORT`.

    Raises:
        ConfigError: it is neither.
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (separator and host and port.isdecimal()):
        raise ConfigError(f"serve = {text!r}: must be HOST:PORT, e.g. 127.0.0.1:8000")
    return host, int(port)
