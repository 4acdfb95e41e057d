"""What the desk looks like at this moment, as `/status` and `/episodes/{id}` say it."""

import time
from itertools import islice

from trl_ext.agents.trajectory import Trajectory
from trl_ext.serving.board import running_view, view_of
from trl_ext.serving.desk import Desk
from trl_ext.serving.ledger import HTTP, Holder
from trl_ext.serving.messages import PROTOCOL
from trl_ext.serving.replies import EpisodeView, Policy, Queues, Status, WorkerView

RUNNING = 200  # episodes that the status lists: those that were taken first


def status_of(desk: Desk) -> Status:
    with desk.changed:
        ledger, now = desk.ledger, desk.ledger.clock()
        return Status(
            run=desk.run,
            protocol=PROTOCOL,
            started=desk.started,
            now=time.time(),
            stopping=desk.stopping,
            policy=Policy(
                model=desk.model,
                version=ledger.version,
                rollout=desk.in_rollout,
                completions=desk.completions,
                tokens=desk.tokens,
                last_batch=desk.last_batch,
            ),
            workers=[_worker(holder, now) for holder in ledger.holders.values()],
            queues=Queues(
                episodes=len(ledger.queue),
                running=len(ledger.running),
                completions=sum(ticket.waits_for == "policy" for ticket in ledger.running.values())
                + sum(pending.talk is None for pending in desk.pendings),
                completions_limit=desk.options.max_waiting,
            ),
            running=[running_view(one, now - one.taken) for one in islice(ledger.running.values(), RUNNING)],
            counters=ledger.counters.model_copy(),
            finished=list(desk.board.finished),
            failures=list(desk.board.failures),
            series=list(desk.board.series),
        )


def episode_of(desk: Desk, id: str) -> EpisodeView | None:
    with desk.changed:
        for ticket in desk.ledger.running.values():
            if id in (ticket.id, ticket.lease):
                lease, play = ticket.play or ("", None)
                trajectory = play.trajectory if play is not None and lease == ticket.lease else Trajectory([])
                return view_of(ticket, trajectory, desk.ledger.seconds(ticket))
        return desk.board.find(id)


def _worker(holder: Holder, now: float) -> WorkerView:
    running = len(holder.tickets)
    return WorkerView(
        id=holder.id.removeprefix(HTTP),
        kind="http" if holder.concurrency is None else "socket",
        environments=list(holder.environments),
        concurrency=running if holder.concurrency is None else holder.concurrency,
        running=running,
        heartbeat_age=now - holder.seen,
        connected=now - holder.joined,
        done=holder.done,
        failed=holder.failed,
        draining=holder.draining,
    )
