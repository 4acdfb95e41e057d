"""Episodes that are played elsewhere, as TRL's `rollout_func`: agents play them, the policy here answers them."""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from typing import Any

from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object

from trl_ext.agents.batch_rollout import BatchRollout, Recorder, show
from trl_ext.agents.environment import Step
from trl_ext.agents.environment_reward import episode_metrics
from trl_ext.agents.rendering import Renderer
from trl_ext.agents.sampled_episode import Limits, SampledEpisode
from trl_ext.agents.sampling import sample
from trl_ext.agents.trajectory import Trajectory, json_columns
from trl_ext.errors import ConfigError
from trl_ext.serving.desk import Finish, Move, Said
from trl_ext.serving.http_talk import Pending
from trl_ext.serving.ledger import DROPPED, Ticket
from trl_ext.serving.messages import Failed, Opened, ResultRequest, Stepped
from trl_ext.serving.replies import Point
from trl_ext.serving.server import RolloutServer

Answer = tuple[list[int], list[float] | None]  # what was sampled, with its log-probabilities

logger = get_logger(__name__)

LONELY_SECONDS = 30.0
BEAT_SECONDS = 2.0  # processes that wait for the main one hear from it so often
_CLOSED = {
    "context": ("context_length_exceeded", "the episode has no room for another turn"),
    "max_turns": ("max_turns", "the episode has had all its turns"),
}


def remote_rollout(
    server: RolloutServer,
    *,
    environment: str = "default",
    max_turns: int = 10,
    max_turn_tokens: int | None = None,
    max_failures: int | float = 0.5,
    wait_for: float = 1.0,
    gather_seconds: float = 0.05,
    chat: bool | None = None,
    recorder: Recorder | Sequence[Recorder] | None = None,
) -> "RemoteRollout":
    """A `rollout_func` like `environment_rollout`, whose environments are workers' and agents' at `server`.

    It asks for an episode for each row, lets the policy answer those who play, many at a time, and returns when the
    episodes are over. The tokens are those that were sampled, in the same code. A worker's episode goes on from the
    row's prompt; an agent that comes by HTTP writes the whole conversation itself.

    Args:
        environment: the name that workers must have (`trl-ext worker --env`); those without names play any.
        wait_for: the share of the episodes after which the others are not waited for any more: they are dropped, or
            with `Rules.max_policy_lag` played on for a later rollout.
        gather_seconds: how long the first request waits for others, to be answered together.

    Raises:
        ConfigError: an argument is out of range.
    """
    return RemoteRollout(
        server, environment, max_turns, max_turn_tokens, max_failures, wait_for, gather_seconds, chat, recorder
    )


class RemoteRollout(BatchRollout):
    """What `remote_rollout` returns.

    The main process has the server, the episodes and the queue; in each round it shares out what is to be continued,
    and every process generates for as many rows, as engines that work together must.
    """

    def __init__(
        self,
        server: RolloutServer,
        environment: str,
        max_turns: int,
        max_turn_tokens: int | None,
        max_failures: int | float,
        wait_for: float,
        gather_seconds: float,
        chat: bool | None,
        recorder: Recorder | Sequence[Recorder] | None,
    ):
        super().__init__(max_turns, max_turn_tokens, max_failures, chat, recorder)
        if not 0 < wait_for <= 1:
            raise ConfigError(f"wait_for = {wait_for}: must be a share, greater than 0 and at most 1.0")
        if not 0 <= gather_seconds < math.inf:
            raise ConfigError(f"gather_seconds = {gather_seconds}: must be at least 0")
        self.server, self.environment = server, environment
        self.wait_for, self.gather_seconds = wait_for, gather_seconds
        self.warned = False
        self._waiting: list[tuple[Move, SampledEpisode]] = []  # the policy's turn

    def _play(self, prompts: list[Any], trainer: Any, bar: Any) -> list[Trajectory]:
        rows = [{**row, "prompt": prompt} for prompt, row in zip(prompts, self._rows(prompts, trainer), strict=True)]
        accelerator = trainer.accelerator
        everyones = gather_object([rows])
        table = None
        if accelerator.is_main_process:
            table = _Table(self, trainer, [row for part in everyones for row in part])
        try:
            while (work := broadcast_object_list([table and table.round(bar)])[0]) is not None:
                answers = self._sample(trainer, *work)
                if table is not None:
                    table.take(answers)
        except BaseException:
            if table is not None:
                self.server.desk.finish_rollout(table.tickets)
            raise
        ended = broadcast_object_list([table and table.finish()])[0]
        first = sum(map(len, everyones[: accelerator.process_index]))
        return list(ended[first : first + len(rows)])

    def _sample(self, trainer: Any, prefixes: list[list[int]], limit: int) -> list[Answer]:
        """What the policy writes after each prefix: every process has its share of them."""
        if not prefixes:
            return []
        accelerator = trainer.accelerator
        share = -(-len(prefixes) // accelerator.num_processes)
        first = accelerator.process_index * share
        mine = prefixes[first : first + share]
        filler = [[self._tokenizer(trainer).pad_token_id]] * (share - len(mine))
        ids, logprobs = sample(trainer, mine + filler, limit)
        each = [None] * len(ids) if logprobs is None else logprobs
        answers: list[Answer] = gather_object(list(zip(ids, each, strict=True)))
        return answers[: len(prefixes)]

    def _failure(self, trajectory: Trajectory) -> str | None:
        failure = trajectory.failure
        return None if failure is None or failure.startswith(DROPPED) else failure


class _Table:
    """One rollout, in the main process."""

    def __init__(self, rollout: RemoteRollout, trainer: Any, rows: list[dict[str, Any]]):
        self.rollout, self.trainer, self.desk = rollout, trainer, rollout.server.desk
        self.renderer: Renderer = rollout._make_renderer(trainer)
        self.limits: Limits = rollout._limits(trainer)
        self.pad_token: int = rollout._tokenizer(trainer).pad_token_id
        self.started = time.perf_counter()
        keyed = [(_key(row), {**json_columns(row), "prompt": row["prompt"]}) for row in rows]
        self.tickets = self.desk.ask(keyed, rollout.environment, trainer.state.global_step)
        self.enough = math.ceil(rollout.wait_for * len(rows))
        self.full = {ticket.id: row for ticket, row in zip(self.tickets, rows, strict=True)}

    def round(self, bar: Any) -> tuple[list[list[int]], int] | None:
        """What the policy has to continue, and by how many tokens at most. None: the rollout is over."""
        waiting = self.rollout._waiting
        came = self.desk.collect(self.tickets, bool(waiting), self.rollout.gather_seconds, BEAT_SECONDS)
        self._take_all(*(came or ([], [])))
        over = [ticket.result for ticket in self.tickets if ticket.result is not None]
        show(bar, over)
        self._look_for_workers()
        if len(over) >= self.enough:
            return None
        with self.desk.changed:
            waiting[:] = [(move, episode) for move, episode in waiting if self.desk.runs(move)]
        waiting.sort(key=lambda pair: pair[0].ticket.number if pair[0].ticket else math.inf)
        episodes = [episode for _, episode in waiting]
        if came is None or not episodes:
            return [], 0
        limit = min(max(one.turn_room for one in episodes), *(one.context_left for one in episodes))
        return [episode.ids for episode in episodes], limit

    def _look_for_workers(self) -> None:
        if (
            not self.rollout.warned
            and not self.desk.ledger.holders
            and time.perf_counter() - self.started > LONELY_SECONDS
        ):
            self.rollout.warned = True
            url, name = self.rollout.server.url, self.rollout.environment
            logger.warning("nobody has come to play: trl-ext worker --server %s --env %s", url, name)

    def take(self, answers: list[Answer]) -> None:
        """What the policy wrote for those whose turn it was."""
        said, still = [], []
        for (move, episode), (ids, logprobs) in zip(self.rollout._waiting, answers, strict=True):
            if episode.add(ids, logprobs):
                finish: Finish = "stop" if episode.ended else "length"
                said.append((move, Said(episode.text, finish, len(episode.ids), episode.turn_tokens)))
            elif episode.playing:
                still.append((move, episode))
            else:
                self._close(move, episode)
        self.rollout._waiting = still
        self.desk.say(said)

    def finish(self) -> list[Trajectory]:
        """The trajectories, in the order of the rows."""
        self._take_all(*self.desk.finish_rollout(self.tickets))
        trajectories = [ticket.result or self._carried_over(ticket) for ticket in self.tickets]
        self._add_point(trajectories)
        return trajectories

    def _take_all(self, moves: list[Move], ended: list[Ticket]) -> None:
        for move in moves:
            self._take_move(move)
        for ticket in ended:
            self._end(ticket)

    def _take_move(self, move: Move) -> None:
        ticket = move.ticket
        if ticket is not None and move.lease != ticket.lease:
            return  # of a lease that was lost
        try:
            episode = self._answered(ticket, move)
        except Exception as error:  # a template or a tokenizer that cannot take what was said
            failure = f"{type(error).__name__}: {error}"[:500]
            self.desk.fail(move, failure)
            return
        if isinstance(move.message, Failed | ResultRequest) or not self.desk.runs(move):
            return
        if episode.playing:
            self.rollout._waiting.append((move, episode))
        else:
            self._close(move, episode)

    def _answered(self, ticket: Ticket | None, move: Move) -> SampledEpisode:
        """The episode after what a worker or an agent said."""
        message = move.message
        if ticket is None:
            episode = self._episode({"prompt": ""})
            episode.open(message.new)
        else:
            episode = self._of(ticket)
            if isinstance(message, Opened):
                episode.open([one.model_dump(exclude_unset=True) for one in message.messages])
            elif isinstance(message, Stepped):
                said = [one.model_dump(exclude_unset=True) for one in message.messages]
                episode.answer(Step(said, message.reward, message.terminated, message.truncated, dict(message.info)))
            elif isinstance(message, Failed):
                episode.fail(message.error)
            elif isinstance(message, ResultRequest):
                _conclude(episode, message)
            elif message.first:  # an agent writes its own prompt
                episode.row = {**episode.row, "prompt": ""}
                episode.open(message.new)
            else:
                episode.answer(Step(message.new, 0.0, False, False, {}))
        if isinstance(message, Pending):
            episode.limits = _limited(self.limits, message.limit)
        return episode

    def _of(self, ticket: Ticket) -> SampledEpisode:
        """What is kept of the ticket's attempt."""
        lease, episode = ticket.play or ("", None)
        if episode is None or lease != ticket.lease:
            episode = self._episode(self.full.get(ticket.id, ticket.row))
            ticket.play = (ticket.lease, episode)
        return episode

    def _episode(self, row: dict[str, Any]) -> SampledEpisode:
        return SampledEpisode(row, self.renderer, self.limits)

    def _close(self, move: Move, episode: SampledEpisode) -> None:
        code, reason = _CLOSED[episode.trajectory.truncated]
        self.desk.close(move, reason, code)

    def _end(self, ticket: Ticket) -> None:
        """A ticket has ended: complete what is kept of it, and put it up."""
        episode = self._of(ticket)
        if ticket.state == "dropped":
            episode.trajectory.failure = ticket.failure
        elif ticket.failure is not None and episode.trajectory.failure is None:
            episode.fail(ticket.failure)
        ticket.result = episode.finish(self.pad_token, self.desk.ledger.seconds(ticket))
        ticket.result.seconds["environment"] = ticket.agent_seconds
        self.desk.show(ticket, ticket.result)

    def _carried_over(self, ticket: Ticket) -> Trajectory:
        """In the place of an episode that goes on without this rollout."""
        episode = self._episode(self.full[ticket.id])
        episode.trajectory.failure = DROPPED + "it is played on for a later rollout"
        return episode.finish(self.pad_token, 0.0)

    def _add_point(self, trajectories: list[Trajectory]) -> None:
        done = [one for one in trajectories if one.failure is None]
        rewards = [one.reward for one in done if one.reward is not None]
        dropped = sum((one.failure or "").startswith(DROPPED) for one in trajectories)
        self.desk.add_point(
            Point(
                step=self.trainer.state.global_step,
                split="train" if self.trainer.model.training else "eval",
                episodes=len(trajectories),
                failed=len(trajectories) - len(done) - dropped,
                dropped=dropped,
                reward=math.fsum(rewards) / len(rewards) if rewards else None,
                success=episode_metrics(done).get("success") if done else None,
                seconds=time.perf_counter() - self.started,
            )
        )


def _conclude(episode: SampledEpisode, result: ResultRequest) -> None:
    """How an agent says that an episode ended; what cut it off, if anything did, is known here."""
    trajectory = episode.trajectory
    truncated, turns = trajectory.truncated, trajectory.turns
    if result.failure is not None or not trajectory.completion_ids:
        episode.fail(result.failure or "the opening has no room for a turn")
        return
    info = {**result.metrics, **({} if result.success is None else {"success": result.success})}
    step = Step([], result.reward or 0.0, not truncated, False, info)
    if episode.turn_tokens:
        episode.answer(step)
    else:  # the last turn was answered by the request that had no room: the reward goes to it
        trajectory.add(step)
        if turns:
            trajectory.turn_ends.pop()
            trajectory.rewards[-2:] = [sum(trajectory.rewards[-2:])]
    trajectory.truncated = truncated
    if result.rewards is not None:
        trajectory.rewards = [*result.rewards]


def _limited(limits: Limits, tokens: int | None) -> Limits:
    if tokens is None:
        return limits
    return dataclasses.replace(limits, max_turn_tokens=min(tokens, limits.max_turn_tokens or tokens))


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row["prompt"], json_columns(row)], sort_keys=True)
