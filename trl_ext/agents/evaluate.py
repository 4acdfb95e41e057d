"""How well a player does in an environment: success with its confidence interval, rewards, turns, tokens, time."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from trl_ext.agents.environment import Environment, begin, take_turn
from trl_ext.agents.players import Episode, Player
from trl_ext.agents.stepping import Stepper, put_back, settle
from trl_ext.agents.trajectory import Trajectory, json_columns, successes
from trl_ext.errors import ConfigError


@dataclass(frozen=True)
class Score:
    """What a player reached. Episodes that failed are counted, and in none of the other figures.

    `success_low` and `success_high` bound the success rate with 95% confidence (Wilson); the rate is None where the
    environment does not say what success is. `reward_error` is the standard error of the mean reward. `tokens` are what
    the player wrote in an episode, None for one that has none; `invalid` is the share of replies that are no
    action; `seconds` is the time for an episode, all of them played side by side.
    """

    player: str
    episodes: int
    failed: int
    success: float | None
    success_low: float | None
    success_high: float | None
    reward: float | None
    reward_error: float | None
    turns: float | None
    tokens: float | None
    invalid: float | None
    truncated: float | None
    seconds: float


def evaluate(
    make_environment: Callable[[], Environment],
    player: Player,
    episodes: int = 100,
    seed: int = 0,
    name: str = "player",
    concurrency: int = 64,
    step_timeout: float | None = 60.0,
) -> tuple[Score, list[Trajectory]]:
    """Play `episodes` episodes, begun from the environment's own rows, and sum them up.

    Two players that are given the same seed play the same tasks.

    Args:
        concurrency: how many episodes are played side by side.
        step_timeout: seconds that a reset or a step may take; an episode that takes longer has failed.

    Raises:
        ConfigError: `episodes` or `concurrency` is less than 1.
    """
    for argument, value in (("episodes", episodes), ("concurrency", concurrency)):
        if value < 1:
            raise ConfigError(f"{argument} = {value}: must be at least 1")
    started = time.perf_counter()
    stepper = Stepper(concurrency, step_timeout)
    idle = [make_environment()]
    rows = list(enumerate(idle[0].rows(episodes, seed)))
    active: list[Episode] = []
    over: list[Episode] = []
    with tqdm(total=episodes, desc=name, unit=" episodes", disable=None) as progress:
        while rows or active:
            places = concurrency - len(active)
            started_now, rows = rows[:places], rows[places:]
            idle += [make_environment() for _ in range(len(started_now) - len(idle))]
            active += _begin([(number, row, idle.pop()) for number, row in started_now], stepper)
            _play_turn([episode for episode in active if episode.playing], player, stepper)
            ended = [episode for episode in active if not episode.playing]
            active = [episode for episode in active if episode.playing]
            for one in ended:
                put_back(one.environment, one.trajectory.failure, idle)
            over += ended
            progress.update(len(ended))
            progress.set_postfix(reward=_mean(_rewards(over)), refresh=False)
    for environment in idle:
        environment.close()
    over.sort(key=lambda episode: episode.number)
    return summarize(over, name, time.perf_counter() - started), [episode.trajectory for episode in over]


def _begin(starts: Sequence[tuple[int, dict[str, Any], Environment]], stepper: Stepper) -> list[Episode]:
    episodes = [Episode(number, env, Trajectory([], row=json_columns(row))) for number, row, env in starts]
    first = stepper.run([begin(environment, row, stepper.call) for _, row, environment in starts])
    for episode, messages in zip(episodes, first, strict=True):
        settle(episode, messages, episode.trajectory.messages.extend)
    return episodes


def _play_turn(episodes: Sequence[Episode], player: Player, stepper: Stepper) -> None:
    replies = player.act(episodes) if episodes else []
    answered = []
    for episode, reply in zip(episodes, replies, strict=True):
        if reply is not None:
            episode.messages.append({"role": "assistant", "content": reply})
            answered.append((episode, reply))
        elif episode.playing:
            episode.trajectory.truncated = "context"
    steps = stepper.run([take_turn(episode.environment, reply, stepper.call) for episode, reply in answered])
    for (episode, _), step in zip(answered, steps, strict=True):
        settle(episode, step, episode.add)


def summarize(episodes: Sequence[Episode], player: str, seconds: float) -> Score:
    """The score of episodes that took so many seconds together."""
    played = [episode for episode in episodes if not episode.trajectory.failure]
    known = successes([episode.trajectory for episode in played])
    low, high = wilson_interval(sum(known), len(known)) if known else (None, None)
    rewards, turns = _rewards(played), sum(episode.turns for episode in played)
    tokens = [episode.trajectory.sampled_tokens for episode in played if episode.trajectory.completion_ids]
    return Score(
        player=player,
        episodes=len(episodes),
        failed=len(episodes) - len(played),
        success=_mean(known),
        success_low=low,
        success_high=high,
        reward=_mean(rewards),
        reward_error=statistics.stdev(rewards) / math.sqrt(len(rewards)) if len(rewards) > 1 else None,
        turns=_mean([episode.turns for episode in played]),
        tokens=_mean(tokens),
        invalid=sum(episode.invalid for episode in played) / turns if turns else None,
        truncated=_mean([bool(episode.trajectory.truncated) for episode in played]),
        seconds=seconds / len(episodes),
    )


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval that holds a success rate with 95% confidence (Wilson's score interval, 1927).

        (p + z^2/2n -+ z sqrt(p(1 - p)/n + z^2/4n^2)) / (1 + z^2/n)

    Unlike p -+ z sqrt(p(1 - p)/n) it is right for few trials and near 0 and 1.
    """
    rate, share = successes / trials, z * z / trials
    middle = rate + share / 2
    reach = z * math.sqrt(rate * (1 - rate) / trials + share / (4 * trials))
    return max(0.0, (middle - reach) / (1 + share)), min(1.0, (middle + reach) / (1 + share))


def _rewards(episodes: Sequence[Episode]) -> list[float]:
    return [reward for episode in episodes if (reward := episode.trajectory.reward) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
