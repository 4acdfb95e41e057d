"""Who plays which episode, and how each ended: the book-keeping of leases, without threads, sockets or a policy."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from trl_ext.errors import ConfigError
from trl_ext.serving.replies import Counters, State

HTTP = "http:"  # before the names of agents by HTTP, which they share with no worker on a socket
DROPPED = "dropped: "  # what the failure of a dropped episode begins with
KEPT = 2000  # ended episodes by which late messages are told from invented ones
MISSED = 3  # heartbeats


@dataclass(frozen=True)
class Rules:
    """What becomes of episodes that do not come back.

    Args:
        heartbeat: seconds between two signs of life of a worker on a socket; after three without it has gone.
        silence: seconds between two requests of an agent that plays by HTTP, before it has gone. Slow agents take long
            for a turn, and whether a connection is open says nothing of them: it is no shorter than they need.
        episode_timeout: seconds that an episode may take, not counting its waits for the policy. Then it has failed.
        max_attempts: workers that may be lost over an episode. Then it has failed.
        max_policy_lag: by how many versions the policy may have gone on since an episode began. 0: what a rollout did
            not wait for is dropped. More: it is played on, and taken by a later rollout that asks for the same row.
        max_running: episodes that are played at a time.

    Raises:
        ConfigError: a value is out of range.
    """

    heartbeat: float = 5.0
    silence: float = 120.0
    episode_timeout: float = 600.0
    max_attempts: int = 5
    max_policy_lag: int = 0
    max_running: int = 4096

    def __post_init__(self) -> None:
        for name in ("heartbeat", "silence", "episode_timeout", "max_attempts", "max_running"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be greater than 0")
        if self.max_policy_lag < 0:
            raise ConfigError(f"max_policy_lag = {self.max_policy_lag}: must be at least 0")


@dataclass(eq=False)
class Ticket:
    """An episode that was asked for.

    `play` is what the rollout keeps of it, with the lease that it is of, and `result` what became of it; `talk` is what
    an agent by HTTP said in this attempt.
    """

    number: int
    id: str
    environment: str
    row: dict[str, Any]
    key: str
    version: int
    state: State = "queued"
    attempt: int = 0
    worker: str = ""
    turn: int = 0
    waits_for: Literal["agent", "policy"] = "agent"
    since: float = 0.0
    taken: float = 0.0
    agent_seconds: float = 0.0
    ended: float = 0.0
    failure: str | None = None
    play: tuple[str, Any] | None = None
    result: Any = None
    talk: Any = None

    @property
    def lease(self) -> str:
        return f"{self.id}.{self.attempt}"

    @property
    def player(self) -> str:
        """The worker's or agent's own name."""
        return self.worker.removeprefix(HTTP)

    @property
    def open(self) -> bool:
        return self.state in ("queued", "running")


@dataclass(eq=False)
class Holder:
    """A worker, or an agent by HTTP, of which nobody knows how many episodes it can play: `concurrency` is None."""

    id: str
    environments: tuple[str, ...]
    concurrency: int | None
    joined: float
    seen: float
    tickets: set[Ticket] = field(default_factory=set)
    done: int = 0
    failed: int = 0
    draining: bool = False

    @property
    def free(self) -> bool:
        return not self.draining and (self.concurrency is None or len(self.tickets) < self.concurrency)


class StaleError(Exception):
    """A message for a lease that is over, or that never was."""


class DuplicateError(Exception):
    """A message that was taken before."""


class OrderError(Exception):
    """A message whose turn has not come."""


class Ledger:
    """Every episode that is asked for ends exactly once: done, failed or dropped.

    `over` collects (ticket, lease, reason) of leases that ended otherwise than by their worker's word, `ended` the
    tickets that ended; who tells the workers and reads the episodes empties them.

    Args:
        run: a word that is in every id, so that those of another run of the server are known.
    """

    def __init__(self, rules: Rules, run: str, clock: Callable[[], float] = time.monotonic):
        self.rules, self.run, self.clock = rules, run, clock
        self.version = 0
        self.holders: dict[str, Holder] = {}
        self.counters = Counters()
        self.queue: deque[Ticket] = deque()
        self.running: dict[str, Ticket] = {}  # by lease
        self.over: list[tuple[Ticket, str, str]] = []
        self.ended: list[Ticket] = []
        self._numbers = 0
        self._carried: dict[str, list[Ticket]] = {}  # by their rows
        self._last: OrderedDict[str, str] = OrderedDict()  # the lease with which an episode ended, by its id

    def ask(self, rows: Iterable[tuple[str, dict[str, Any]]], environment: str, version: int) -> list[Ticket]:
        """A ticket for each (key, row). Those of equal keys are episodes of equal rows."""
        self.version = version
        for tickets in self._carried.values():
            for ticket in tickets:
                if version - ticket.version > self.rules.max_policy_lag:
                    self.drop(ticket, f"the policy went on from {ticket.version} to {version}")
            tickets[:] = [ticket for ticket in tickets if version - ticket.version <= self.rules.max_policy_lag]
        self._carried = {key: tickets for key, tickets in self._carried.items() if tickets}
        return [self._adopted(key, environment) or self._new(key, row, environment) for key, row in rows]

    def _adopted(self, key: str, environment: str) -> Ticket | None:
        for ticket in self._carried.get(key, ()):
            if ticket.environment == environment and ticket.state in ("queued", "running", "done"):
                self._carried[key].remove(ticket)
                return ticket
        return None

    def _new(self, key: str, row: dict[str, Any], environment: str) -> Ticket:
        self._numbers += 1
        ticket = Ticket(self._numbers, f"{self._numbers}-{self.run}", environment, row, key, self.version)
        self.counters.asked += 1
        self.counters.open += 1
        self.queue.append(ticket)
        return ticket

    def close(self, tickets: Iterable[Ticket]) -> None:
        """A rollout is over. What of it is still open is carried over to the next ones, or dropped."""
        for ticket in tickets:
            if ticket.open and self.rules.max_policy_lag:
                self._carried.setdefault(ticket.key, []).append(ticket)
            elif ticket.open:
                self.drop(ticket, "the rollout did not wait for it")

    def join(self, id: str, environments: Iterable[str], concurrency: int | None) -> Holder:
        """A worker is there. One of the same name has gone, then."""
        self.leave(id, "another worker has its name")
        now = self.clock()
        self.holders[id] = Holder(id, tuple(environments), concurrency, now, now)
        return self.holders[id]

    def leave(self, id: str, why: str) -> None:
        """A worker is not there any more: others play its episodes."""
        holder = self.holders.pop(id, None)
        tickets = sorted(holder.tickets, key=lambda ticket: ticket.number) if holder else []
        for ticket in reversed(tickets):  # each goes to the queue's front
            self.release(ticket, why)

    def heard(self, id: str) -> None:
        if id in self.holders:
            self.holders[id].seen = self.clock()

    def claim(self, id: str) -> Ticket | None:
        """The first episode in the queue that this worker can play, if it has a free place."""
        holder = self.holders[id]
        if not holder.free or len(self.running) >= self.rules.max_running:
            return None
        for ticket in self.queue:
            if not holder.environments or ticket.environment in holder.environments:
                break
        else:
            return None
        self.queue.remove(ticket)
        now = self.clock()
        ticket.state, ticket.worker, ticket.attempt = "running", id, ticket.attempt + 1
        ticket.turn, ticket.waits_for, ticket.since, ticket.taken, ticket.agent_seconds = 0, "agent", now, now, 0.0
        ticket.talk = None
        holder.tickets.add(ticket)
        self.running[ticket.lease] = ticket
        return ticket

    def held(self, lease: str, worker: str | None = None) -> Ticket:
        """The ticket of a lease that runs.

        Raises:
            DuplicateError: it is over, and was not taken from its worker.
            StaleError: it is over, it is another worker's, or it never was.
        """
        ticket = self.running.get(lease)
        if ticket is not None and worker in (None, ticket.worker):
            return ticket
        if ticket is None and self._last.get(lease.rpartition(".")[0]) == lease:
            self.counters.duplicates += 1
            raise DuplicateError(f"the lease {lease} has ended")
        self.counters.stale += 1
        raise StaleError(f"there is no lease {lease}, or it is over")

    def answered(self, ticket: Ticket, turn: int, final: bool = False) -> None:
        """The agent has answered turn `turn` of the policy (0: it has opened the episode).

        Raises:
            DuplicateError: it had before.
            OrderError: the policy has not had that turn.
        """
        if turn < ticket.turn or (turn == ticket.turn and ticket.waits_for == "policy"):
            self.counters.duplicates += 1
            raise DuplicateError(f"turn {turn} of {ticket.lease} was answered before")
        if turn > ticket.turn:
            raise OrderError(f"turn {turn} of {ticket.lease} cannot be answered: the policy has had {ticket.turn}")
        self._pass(ticket, "policy")
        if final:
            self.finish(ticket)

    def acted(self, ticket: Ticket) -> None:
        """The policy has had its turn."""
        ticket.turn += 1
        self._pass(ticket, "agent")

    def hand_back(self, ticket: Ticket) -> None:
        """The policy cannot have its turn."""
        self._pass(ticket, "agent")

    def alive(self, ticket: Ticket) -> None:
        """Who has the turn is still busy with it."""
        self._pass(ticket, ticket.waits_for)

    def finish(self, ticket: Ticket) -> None:
        """The episode has ended as it should."""
        self.counters.done += 1
        self._said(ticket)
        self._end(ticket, "done")

    def failed(self, ticket: Ticket, failure: str) -> None:
        """The worker says that the episode failed."""
        self._said(ticket)
        self.fail(ticket, failure)

    def fail(self, ticket: Ticket, failure: str) -> None:
        """The episode has ended, and is not scored."""
        self.counters.failed += 1
        self._end(ticket, "failed", failure)

    def drop(self, ticket: Ticket, why: str) -> None:
        """Nobody waits for the episode, if it is not over."""
        if ticket.open:
            if ticket.state == "running":
                self.over.append((ticket, ticket.lease, why))
            self.counters.dropped += 1
            self._end(ticket, "dropped", DROPPED + why)

    def release(self, ticket: Ticket, why: str) -> None:
        """The lease is lost. The episode begins anew with the next worker, before all others."""
        self.over.append((ticket, ticket.lease, why))
        if ticket.attempt >= self.rules.max_attempts:
            self.fail(ticket, f"lost {ticket.attempt} times, the last time because {why}")
            return
        self._take_back(ticket)
        ticket.state = "queued"
        self.counters.requeued += 1
        self.queue.appendleft(ticket)

    def sweep(self) -> None:
        """Take back what gives no sign of life, and end what takes too long. To be called a few times a second."""
        now = self.clock()
        for holder in list(self.holders.values()):
            silent = now - holder.seen
            if holder.concurrency is not None and silent > MISSED * self.rules.heartbeat:
                self.leave(holder.id, f"{holder.id} was not heard of for {silent:.0f} s")
            elif holder.concurrency is None and not holder.tickets and silent > self.rules.silence:
                self.leave(holder.id, "it has nothing to do")
        for ticket in list(self.running.values()):
            if ticket.waits_for == "policy":
                continue
            if ticket.agent_seconds + now - ticket.since > self.rules.episode_timeout:
                self.over.append((ticket, ticket.lease, "it took too long"))
                self.fail(ticket, f"took longer than episode_timeout = {self.rules.episode_timeout:g} s")
            elif self.holders[ticket.worker].concurrency is None and now - ticket.since > self.rules.silence:
                self.release(ticket, f"{ticket.worker} was not heard of for {self.rules.silence:g} s")

    def seconds(self, ticket: Ticket) -> float:
        """How long the attempt has taken, or took."""
        return (self.clock() if ticket.open else ticket.ended) - ticket.taken if ticket.attempt else 0.0

    def _pass(self, ticket: Ticket, to: Literal["agent", "policy"]) -> None:
        now = self.clock()
        if ticket.waits_for == "agent":
            ticket.agent_seconds += now - ticket.since
        ticket.waits_for, ticket.since = to, now

    def _take_back(self, ticket: Ticket) -> None:
        del self.running[ticket.lease]
        if ticket.worker in self.holders:
            self.holders[ticket.worker].tickets.discard(ticket)

    def _end(self, ticket: Ticket, state: State, failure: str | None = None) -> None:
        if ticket.state == "running":
            self._take_back(ticket)
        else:
            self.queue.remove(ticket)
        if ticket.worker in self.holders and state != "dropped":
            holder = self.holders[ticket.worker]
            holder.done, holder.failed = holder.done + (state == "done"), holder.failed + (state == "failed")
        ticket.state, ticket.failure, ticket.ended = state, failure, self.clock()
        self.counters.open -= 1
        self.ended.append(ticket)

    def _said(self, ticket: Ticket) -> None:
        self._last[ticket.id] = ticket.lease
        if len(self._last) > KEPT:
            self._last.popitem(last=False)
