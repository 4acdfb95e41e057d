"""Where agents and the policy meet: sockets and requests on the event loop's side, the rollout on the trainer's."""

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from trl_ext.agents.trajectory import Trajectory
from trl_ext.serving import messages as protocol
from trl_ext.serving.board import Board
from trl_ext.serving.http_talk import Pending
from trl_ext.serving.ledger import DuplicateError, Ledger, OrderError, Rules, StaleError, Ticket
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.refusal import Refusal
from trl_ext.serving.replies import Point


class Link(Protocol):
    """A worker's socket, as the desk writes to it. `None` closes it."""

    id: str

    def put(self, message: Any) -> None: ...


class Move(NamedTuple):
    """What the trainer's thread has to take note of, in the order in which it came.

    `message` is what a worker said, or the `Pending` or `ResultRequest` of an agent. `ticket` is None for a request
    that belongs to no episode.
    """

    ticket: Ticket | None
    lease: str
    message: Any


Finish = Literal["stop", "length"]


class Said(NamedTuple):
    """A turn of the policy: its text, how it ended, and how many tokens there are in all and in the turn."""

    text: str
    finish: Finish
    all_tokens: int
    tokens: int


class Desk:
    """One lock, `changed`, around the ledger. Tokens and episodes are the business of the trainer's thread alone.

    Args:
        model: the policy's name.
    """

    def __init__(
        self,
        rules: Rules | None = None,
        options: ServerOptions | None = None,
        model: str = "policy",
        clock: Callable[[], float] = time.monotonic,
    ):
        self.options, self.model = options or ServerOptions(), model
        self.run, self.started = secrets.token_hex(3), time.time()
        self.changed = threading.Condition(threading.RLock())
        self.ledger = Ledger(rules or Rules(), self.run, clock)
        self.board = Board()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.stopping = self.in_rollout = False
        self.pendings: set[Pending] = set()  # requests for a completion
        self.completions = self.tokens = self.last_batch = 0
        self._first: float | None = None  # when the first of what the policy has to do came
        self._links: dict[str, Link] = {}
        self._moves: deque[Move] = deque()
        self._outbox: deque[tuple[Callable[[Any], None], Any]] = deque()

    # Called by the trainer's thread

    def ask(self, rows: Iterable[tuple[str, dict[str, Any]]], environment: str, version: int) -> list[Ticket]:
        """Ask for episodes: workers get them at once."""
        with self.changed:
            tickets = self.ledger.ask(rows, environment, version)
            self.in_rollout = True
            self.settle(dispatch=True)
        return tickets

    def collect(
        self, tickets: Sequence[Ticket], waiting: bool, gather: float, timeout: float
    ) -> tuple[list[Move], list[Ticket]] | None:
        """What came, and the tickets that ended, since it was last given out.

        Returns as soon as the policy has something to do (`waiting`: it has already) and either every agent waits for
        it or `gather` seconds have passed since; or when all `tickets` have ended. None: after `timeout` seconds it has
        not come to that.
        """
        end = time.monotonic() + timeout
        with self.changed:
            while any(ticket.open for ticket in tickets):
                now = time.monotonic()
                if waiting or self._moves or self.ledger.ended:
                    self._first = self._first or now
                    acting = any(ticket.waits_for == "agent" for ticket in self.ledger.running.values())
                    if not acting or now >= self._first + gather:
                        break
                if now >= end:
                    return None
                self.changed.wait((min(end, self._first + gather) if self._first else end) - now)
            return self._taken()

    def say(self, turns: Sequence[tuple[Move, Said]]) -> None:
        """Hand out what the policy wrote, to those whose leases still run."""
        with self.changed:
            for move, said in turns:
                self.tokens += said.tokens
                if not self.runs(move):
                    continue
                if move.ticket is not None:
                    self.ledger.acted(move.ticket)
                if isinstance(move.message, Pending):
                    self.resolve(move.message, move.message.completion(said, self.model))
                elif move.ticket is not None:
                    self.send(move.ticket.worker, protocol.Act(lease=move.lease, turn=move.ticket.turn, text=said.text))
            self.completions, self.last_batch = self.completions + len(turns), len(turns)
            self.settle()

    def close(self, move: Move, reason: str, code: str) -> None:
        """The policy has no room for a turn. A worker's episode ends; an agent is told so, and may say how it ended."""
        with self.changed:
            if not self.runs(move):
                return
            if isinstance(move.message, Pending):
                refusal = Refusal(400, reason, code)
                if move.ticket is not None:
                    move.ticket.talk.closed = refusal
                    self.ledger.hand_back(move.ticket)
                self.resolve(move.message, refusal)
            elif move.ticket is not None:
                self.send(move.ticket.worker, protocol.Over(lease=move.lease, reason=reason))
                self.ledger.finish(move.ticket)
            self.settle(dispatch=True)

    def fail(self, move: Move, failure: str) -> None:
        """What an agent said cannot be used: its episode has failed."""
        with self.changed:
            if isinstance(move.message, Pending):
                self.resolve(move.message, Refusal(400, failure, "invalid_messages"))
            if move.ticket is not None and self.runs(move):
                self.ledger.over.append((move.ticket, move.lease, failure))
                self.ledger.fail(move.ticket, failure)
            self.settle(dispatch=True)

    def runs(self, move: Move) -> bool:
        """Whether somebody still waits for the policy's turn."""
        return move.message in self.pendings if move.ticket is None else move.lease in self.ledger.running

    def show(self, ticket: Ticket, trajectory: Trajectory) -> None:
        """Put up an episode that ended."""
        with self.changed:
            self.board.add(ticket, trajectory, self.ledger.seconds(ticket))

    def finish_rollout(self, tickets: Sequence[Ticket]) -> tuple[list[Move], list[Ticket]]:
        """Nobody waits for the rollout any more. What came last, and what ended last or by that."""
        with self.changed:
            self.in_rollout = False
            self.ledger.close(tickets)
            if not self.ledger.queue:
                for id in self._links:
                    self.send(id, protocol.Wait(reason="the policy is trained"))
            self.settle()
            return self._taken()

    def add_point(self, point: Point) -> None:
        with self.changed:
            self.board.series.append(point)

    # Called in the event loop

    def attach(self, link: Link, hello: protocol.Hello) -> None:
        """A worker has come.

        Raises:
            Refusal: there are too many.
        """
        with self.changed:
            self.make_room(link.id)
            old = self._links.pop(link.id, None)
            if old is not None:
                old.put(None)
            self.ledger.join(link.id, hello.environments, hello.concurrency)
            self.settle()  # what the old one had is over for it alone
            self._links[link.id] = link
            rules, most = self.ledger.rules, self.options.max_message
            link.put(protocol.Welcome(run=self.run, heartbeat=rules.heartbeat, max_message=most))
            self.settle(dispatch=True)
            if not self.ledger.holders[link.id].tickets:
                link.put(protocol.Wait(reason="there is no episode to play now"))

    def detach(self, link: Link) -> None:
        """A worker's socket is closed."""
        with self.changed:
            if self._links.get(link.id) is link:
                del self._links[link.id]
                self.ledger.leave(link.id, f"{link.id} has gone")
                self.settle(dispatch=True)

    def hear(self, link: Link, message: Any) -> str | None:
        """Take a worker's message. What was wrong with it, if anything."""
        with self.changed:
            if self._links.get(link.id) is not link or link.id not in self.ledger.holders:
                link.put(None)  # it was given up: it may connect again
                return None
            self.ledger.heard(link.id)
            try:
                self._take(link.id, message)
            except (DuplicateError, StaleError) as error:
                if message.lease not in self.ledger.running or isinstance(error, StaleError):
                    link.put(protocol.Over(lease=message.lease, reason=str(error)))  # it may play what was said twice
            except OrderError as error:
                self.ledger.counters.garbage += 1
                return str(error)
            return None

    def _take(self, id: str, message: Any) -> None:
        if isinstance(message, protocol.Heartbeat | protocol.Hello):
            return
        if isinstance(message, protocol.Draining):
            self.ledger.holders[id].draining = True
            return
        ticket = self.ledger.held(message.lease, id)
        if isinstance(message, protocol.Returned):
            self.ledger.release(ticket, f"{id} gave it back")
        else:
            if isinstance(message, protocol.Failed):
                self.ledger.failed(ticket, message.error)
            elif isinstance(message, protocol.Opened):
                self.ledger.answered(ticket, 0)
            else:
                self.ledger.answered(ticket, message.turn, message.terminated or message.truncated)
            self.move(Move(ticket, message.lease, message))
        self.settle(dispatch=ticket.state != "running")

    def sweep(self) -> None:
        """Look at the clock: whose lease is over?"""
        with self.changed:
            self.ledger.sweep()
            if self.ledger.over or self.ledger.ended:
                self.settle(dispatch=True)
            for id in [id for id in self._links if id not in self.ledger.holders]:
                self._outbox.append((self._links.pop(id).put, None))  # it was silent; it may connect again
                self.settle()

    def stop(self, seconds: float) -> None:
        """Tell everybody that the server is about to close. Returns when workers have been told, or after `seconds`."""
        with self.changed:
            self.stopping = True
            for id in self._links:
                self.send(id, protocol.Stopping())
                self.send(id, None)
            for pending in list(self.pendings):
                self.resolve(pending, Refusal(503, "the server is stopping", "stopping", 5))
            self.settle()
            self.changed.wait_for(lambda: self.loop is None or not self._links, seconds)

    def count_refused(self, status: int) -> None:
        with self.changed:
            if status in (400, 408, 413, 422):
                self.ledger.counters.garbage += 1
            else:
                self.ledger.counters.refused += 1

    # Under the lock

    def make_room(self, id: str) -> None:
        """Refuse one worker too many.

        Raises:
            Refusal: says when to come again.
        """
        if self.stopping:
            raise Refusal(503, "the server is stopping", "stopping", 5)
        if id not in self.ledger.holders and len(self.ledger.holders) >= self.options.max_workers:
            raise Refusal(503, f"there are {self.options.max_workers} workers", "too_many_workers", 10)

    def move(self, move: Move) -> None:
        self._moves.append(move)
        self.changed.notify_all()

    def resolve(self, pending: Pending, outcome: Any) -> None:
        """Answer a request, once."""
        if pending in self.pendings:
            self.pendings.remove(pending)
            pending.take(outcome)
            self._outbox.append((pending.deliver, outcome))

    def send(self, id: str, message: Any) -> None:
        if id in self._links:
            self._outbox.append((self._links[id].put, message))

    def settle(self, dispatch: bool = False) -> None:
        """After something changed: tell whose leases are over, hand out episodes, wake the trainer's thread."""
        for ticket, lease, reason in self.ledger.over:
            self.send(ticket.worker, protocol.Over(lease=lease, reason=reason))
            if ticket.talk is not None and ticket.talk.pending is not None:
                self.resolve(ticket.talk.pending, Refusal(409, f"the lease {lease} is over: {reason}", "lease_over"))
        self.ledger.over.clear()
        if dispatch and self.ledger.queue and not self.stopping:
            self._dispatch()
        if self._outbox and self.loop is not None:
            self.loop.call_soon_threadsafe(self._flush)
        self.changed.notify_all()

    def _dispatch(self) -> None:
        """One episode for each worker with a free place, then another one, and so on: none gets all of them."""
        free = [id for id in self._links if id in self.ledger.holders and self.ledger.holders[id].free]
        while free and self.ledger.queue:
            took = []
            for id in free:
                ticket = self.ledger.claim(id)
                if ticket is not None:
                    lease = protocol.Lease(lease=ticket.lease, environment=ticket.environment, row=ticket.row)
                    self.send(id, lease)
                    took.append(id)
            free = took

    def _taken(self) -> tuple[list[Move], list[Ticket]]:
        moves, ended = list(self._moves), self.ledger.ended
        self._moves.clear()
        self.ledger.ended, self._first = [], None
        return moves, ended

    def _flush(self) -> None:
        while self._outbox:
            deliver, message = self._outbox.popleft()
            deliver(message)
