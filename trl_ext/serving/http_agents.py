"""Agents that play by HTTP, with any OpenAI client: they claim an episode, ask the policy, and say how it ended."""

import asyncio

from trl_ext.serving import messages as protocol
from trl_ext.serving.chat import ChatCompletion, ChatRequest
from trl_ext.serving.desk import Desk, Move
from trl_ext.serving.http_talk import Pending, Talk
from trl_ext.serving.ledger import HTTP, DuplicateError, StaleError, Ticket
from trl_ext.serving.refusal import Refusal


class HttpAgents:
    """What the routes do at a desk; in the event loop."""

    def __init__(self, desk: Desk):
        self.desk = desk

    def claim(self, request: protocol.ClaimRequest) -> protocol.Claim:
        """An agent's next episode.

        Raises:
            Refusal: there is none now, or there are too many agents.
        """
        desk, ledger, id = self.desk, self.desk.ledger, HTTP + request.agent
        with desk.changed:
            desk.make_room(id)
            if id not in ledger.holders:
                ledger.join(id, request.environments, None)
            ledger.holders[id].environments = tuple(request.environments)
            ledger.heard(id)
            ticket = ledger.claim(id)
            if ticket is None:
                raise Refusal(503, "there is no episode to play now", "no_episode", 1)
            ticket.talk = Talk()
            desk.settle()
            return protocol.Claim(
                id=ticket.id,
                lease=ticket.lease,
                environment=ticket.environment,
                row=ticket.row,
                seconds=ledger.rules.silence,
            )

    async def complete(self, lease: str | None, request: ChatRequest) -> ChatCompletion:
        """The policy's answer, when it is its turn.

        Raises:
            Refusal: the episode is over, the request does not go on from its last one, or too many wait.
        """
        with self.desk.changed:
            if self.desk.stopping:
                raise Refusal(503, "the server is stopping", "stopping", 5)
            ready = self._in_episode(lease, request) if lease is not None else self._alone(request)
        if isinstance(ready, ChatCompletion):
            return ready
        try:
            async with asyncio.timeout(self.desk.options.request_timeout):
                return await asyncio.shield(ready.future)
        except TimeoutError:
            if lease is None:  # an episode's waits for the same request once more; nobody comes back for this one
                with self.desk.changed:
                    self.desk.pendings.discard(ready)
            raise Refusal(503, "the policy is busy: ask again", "timeout", 1) from None

    def alive(self, lease: str) -> None:
        """An agent says that it is busy.

        Raises:
            Refusal: the lease is over.
        """
        with self.desk.changed:
            self.desk.ledger.alive(self._held(lease)[0])

    def result(self, lease: str, request: protocol.ResultRequest) -> protocol.ResultReply:
        """How an agent's episode ended.

        Raises:
            Refusal: the lease is over, or the result makes no sense.
        """
        desk = self.desk
        with desk.changed:
            try:
                ticket, talk = self._held(lease)
            except Refusal as error:
                if isinstance(error.__cause__, DuplicateError):
                    return protocol.ResultReply(counted=False)
                raise
            _check_result(ticket, talk, request)
            if request.returned:
                desk.ledger.release(ticket, f"{ticket.player} gave it back")
                desk.settle(dispatch=True)
                return protocol.ResultReply(counted=False)
            if request.failure is not None:
                desk.ledger.failed(ticket, request.failure)
            else:
                desk.ledger.answered(ticket, ticket.turn, final=True)
            desk.move(Move(ticket, lease, request))
            desk.settle(dispatch=True)
        return protocol.ResultReply(counted=True)

    def _alone(self, request: ChatRequest) -> Pending:
        self._check_room()
        messages = [message.plain() for message in request.messages]
        return self._wait(None, "", Pending(messages, messages, request.limit))

    def _in_episode(self, lease: str, request: ChatRequest) -> ChatCompletion | Pending:
        ticket, talk = self._held(lease)
        if talk.closed is not None:
            raise talk.closed
        asked = [message.plain() for message in request.messages]
        if talk.pending is not None:
            if asked != talk.pending.asked:
                raise Refusal(409, "another request of this episode waits for the policy", "one_at_a_time")
            self.desk.ledger.counters.duplicates += 1
            return talk.pending
        new = talk.conversation.new_in(request.messages)
        if new is None:
            self.desk.ledger.counters.duplicates += 1
            assert talk.conversation.last is not None
            return talk.conversation.last
        self._check_room()
        self.desk.ledger.answered(ticket, ticket.turn)
        return self._wait(ticket, lease, Pending(asked, new, request.limit, talk))

    def _check_room(self) -> None:
        if len(self.desk.pendings) >= self.desk.options.max_waiting:
            raise Refusal(429, "too many requests wait for the policy", "queue_full", 1)

    def _wait(self, ticket: Ticket | None, lease: str, pending: Pending) -> Pending:
        self.desk.pendings.add(pending)
        self.desk.move(Move(ticket, lease, pending))
        return pending

    def _held(self, lease: str) -> tuple[Ticket, Talk]:
        """The episode of an agent; it shows that the agent is there.

        Raises:
            Refusal: it is over, or is a worker's.
        """
        ledger = self.desk.ledger
        try:
            ticket = ledger.held(lease)
        except (DuplicateError, StaleError) as error:
            raise Refusal(409, f"{error}: claim another episode", "lease_over") from error
        if ticket.talk is None:
            raise Refusal(409, f"the lease {lease} is of a worker on a socket", "lease_over")
        ledger.heard(ticket.worker)
        return ticket, ticket.talk


def _check_result(ticket: Ticket, talk: Talk, request: protocol.ResultRequest) -> None:
    given = sum(value is not None for value in (request.reward, request.rewards, request.failure))
    if given + request.returned != 1:
        raise Refusal(400, "give one of reward, rewards, failure and returned", "invalid")
    if request.returned:
        return
    if talk.pending is not None:
        raise Refusal(409, "a request of this episode waits for the policy", "one_at_a_time")
    if request.failure is None and ticket.turn == 0 and talk.closed is None:
        raise Refusal(400, "the policy had no turn in this episode: give a failure, not a reward", "no_turn")
    if request.rewards is not None and len(request.rewards) != ticket.turn:
        raise Refusal(400, f"rewards: {len(request.rewards)} numbers, for {ticket.turn} turns", "invalid")
