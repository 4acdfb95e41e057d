"""A server without a trainer, for whoever works on the page: `python -m tests.serving.demo [PORT] [TOKEN]`.

Its episodes are made up from the clock: they begin, go on and end as one looks.
"""

import sys
import time

import uvicorn

from trl_ext.serving import replies
from trl_ext.serving.app import create_app
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.refusal import Refusal

SECONDS = 6.0  # of an episode
TURNS = 5
WORKERS = 4


class DemoDesk:
    """Has what the routes need; `hostile` is put into every text that an agent or an environment could bring."""

    def __init__(self, hostile: str = ""):
        self.started, self.hostile = time.time() - 60, hostile
        self.refused = 0

    model, stopping = "demo", False

    def status(self) -> replies.Status:
        now = time.time()
        begun = int((now - self.started) / SECONDS * WORKERS)  # one more for each SECONDS / WORKERS
        running, ended = range(max(0, begun - WORKERS), begun), range(max(0, begun - WORKERS - 50), begun - WORKERS)
        failed = sum(self._fails(number) for number in range(begun - WORKERS))
        dropped = (begun - WORKERS) // 40
        return replies.Status(
            run="demo",
            protocol=1,
            started=self.started,
            now=now,
            policy=replies.Policy(
                model="demo" + self.hostile,
                version=begun // 16,
                rollout=begun % 16 < 12,
                completions=begun * TURNS,
                tokens=begun * TURNS * 7,
                last_batch=WORKERS,
            ),
            workers=[
                replies.WorkerView(
                    id=f"worker-{number}{self.hostile}",
                    kind="http" if number == 3 else "socket",
                    environments=["grid_world" + self.hostile],
                    concurrency=2,
                    running=1,
                    heartbeat_age=(now * 1.7 + number) % 5,
                    connected=now - self.started,
                    done=begun // WORKERS,
                    draining=number == 2,
                )
                for number in range(WORKERS)
            ],
            queues=replies.Queues(
                episodes=16 - begun % 16, running=len(running), completions=begun % 3, completions_limit=4096
            ),
            running=[
                replies.RunningEpisode(
                    id=f"{number}-demo",
                    environment="grid_world" + self.hostile,
                    row=f"seed={number}{self.hostile}",
                    worker=f"worker-{number % WORKERS}{self.hostile}",
                    attempt=1 + (number % 11 == 0),
                    turn=self._turn(number, now),
                    waits_for="policy" if number % 2 else "agent",
                    age=now - self._begins(number),
                )
                for number in running
            ],
            counters=replies.Counters(
                asked=begun + 16 - begun % 16,
                done=begun - WORKERS - failed - dropped,
                failed=failed,
                dropped=dropped,
                open=WORKERS + 16 - begun % 16,
                requeued=begun // 11,
                refused=self.refused,
            ),
            finished=[self._finished(number) for number in reversed(ended)],
            failures=[
                replies.Failure(
                    id=f"{number}-demo",
                    worker=f"worker-{number % WORKERS}",
                    error=f"turn 2: TimeoutError: step took longer than 60 s{self.hostile}",
                    at=self._begins(number) + SECONDS,
                )
                for number in reversed(ended)
                if self._fails(number)
            ][:20],
            series=[
                replies.Point(
                    step=step,
                    episodes=16,
                    failed=step % 5 == 0,
                    reward=min(1.4, 0.2 + 0.01 * step) + 0.1 * (step % 3),
                    success=min(1.0, 0.1 + 0.01 * step),
                    seconds=SECONDS,
                )
                for step in range(begun // 16 + 60)
            ],
        )

    def episode(self, id: str) -> replies.EpisodeView | None:
        number, _, run = id.partition("-")
        if run != "demo" or not number.isdecimal() or self._begins(int(number)) > time.time():
            return None
        turn, brought = self._turn(int(number), time.time()), [0.1, -0.1, None, 0.1, 1.1]
        turns = [replies.Turn(role="user", text=f"a1>c{int(number) % 4 + 1}:{self.hostile}")]
        for place in range(turn):
            turns.append(replies.Turn(role="assistant", text="urdl"[place % 4] + self.hostile, reward=brought[place]))
            turns.append(replies.Turn(role="user", text=f"b{place % 4 + 1}>c3:{self.hostile}"))
        finished = self._finished(int(number)) if turn == TURNS else None
        return replies.EpisodeView(
            id=id,
            state=finished.state if finished else "running",
            environment="grid_world" + self.hostile,
            row={"seed": int(number), "note": "a row" + self.hostile},
            worker=f"worker-{int(number) % WORKERS}",
            attempts=1,
            step=int(number) // 16,
            turns=turns,
            reward=finished.reward if finished else None,
            success=finished.success if finished else None,
            failure=finished.failure if finished else None,
            metrics={"invalid": 0.0, "length" + self.hostile: 4.0},
            seconds=SECONDS,
        )

    def count_refused(self, status: int) -> None:
        self.refused += 1

    def claim(self, request):
        raise Refusal(503, "the demo has no episodes to play", "no_episode", 5)

    def alive(self, lease):
        raise Refusal(409, "the lease is over", "lease_over")

    def result(self, lease, request):
        raise Refusal(409, "the lease is over", "lease_over")

    async def complete(self, lease, request):
        raise Refusal(503, "the demo has no policy", "no_policy", 5)

    async def serve_worker(self, socket, client_id):
        await socket.close(1013)

    def _begins(self, number: int) -> float:
        return self.started + number * SECONDS / WORKERS

    def _turn(self, number: int, now: float) -> int:
        return max(0, min(TURNS, int((now - self._begins(number)) / SECONDS * TURNS)))

    def _fails(self, number: int) -> bool:
        return number % 13 == 5

    def _finished(self, number: int) -> replies.FinishedEpisode:
        failed = self._fails(number)
        return replies.FinishedEpisode(
            id=f"{number}-demo",
            state="failed" if failed else "done",
            environment="grid_world" + self.hostile,
            row=f"seed={number}{self.hostile}",
            worker=f"worker-{number % WORKERS}{self.hostile}",
            step=number // 16,
            reward=None if failed else 1.1 - 0.1 * (number % 7),
            success=None if failed else number % 3 > 0,
            turns=TURNS,
            truncated="max_turns" if number % 3 == 0 else "",
            failure=f"turn 2: TimeoutError: step took longer than 60 s{self.hostile}" if failed else None,
            seconds=SECONDS,
            ended=self._begins(number) + SECONDS,
        )


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    options = ServerOptions(port=port, token=sys.argv[2] if len(sys.argv) > 2 else None)
    uvicorn.run(create_app(DemoDesk(), options), port=port, ws_max_size=options.max_message)
