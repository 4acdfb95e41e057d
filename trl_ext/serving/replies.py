"""What the server answers to whoever watches it: the JSON of `/status` and `/episodes/{id}`, which the page shows."""

import json
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic_core import PydanticSerializationError
from starlette.responses import Response

State = Literal["queued", "running", "done", "failed", "dropped"]


def json_reply(view: BaseModel) -> Response:
    """A lone surrogate, which an environment's text may have and UTF-8 cannot hold, is sent as an escape."""
    try:
        text = view.model_dump_json()
    except PydanticSerializationError:
        text = json.dumps(view.model_dump())
    return Response(text, media_type="application/json")


class Policy(BaseModel):
    """`version` is the trainer's step. `rollout`: it waits for episodes; otherwise it trains, and requests wait."""

    model: str
    version: int = 0
    rollout: bool = False
    completions: int = Field(default=0, description="turns sampled since the server began")
    tokens: int = Field(default=0, description="tokens sampled since the server began")
    last_batch: int = Field(default=0, description="how many turns were sampled together the last time")


class WorkerView(BaseModel):
    """A worker on a socket, or an agent that took its episodes by HTTP."""

    id: str
    kind: Literal["socket", "http"]
    environments: list[str] = []
    concurrency: int
    running: int
    heartbeat_age: float = Field(description="seconds since it was last heard of")
    connected: float = Field(description="seconds since it came")
    done: int = 0
    failed: int = 0
    draining: bool = False


class Queues(BaseModel):
    episodes: int = Field(description="episodes that no worker has taken yet")
    running: int = Field(description="episodes that are played")
    completions: int = Field(description="turns that wait for the policy")
    completions_limit: int = Field(description="how many requests by HTTP may wait")


class RunningEpisode(BaseModel):
    id: str
    environment: str
    row: str = Field(description="the row's columns in short, as text")
    worker: str
    attempt: int = Field(description="1 for the first worker that plays it")
    turn: int = Field(description="turns that the policy has had")
    waits_for: Literal["policy", "agent"]
    age: float = Field(description="seconds since this worker took it")


class Counters(BaseModel):
    """Of the whole run of this server: `asked` = `done` + `failed` + `dropped` + `open`, at any moment."""

    asked: int = 0
    done: int = 0
    failed: int = 0
    dropped: int = Field(default=0, description="not waited for, or of a policy older than max_policy_lag")
    open: int = Field(default=0, description="queued and running")
    requeued: int = Field(default=0, description="leases that were lost: their episodes went back into the queue")
    duplicates: int = Field(default=0, description="messages that had been taken before")
    stale: int = Field(default=0, description="messages for a lease that is over, or for none")
    garbage: int = Field(default=0, description="messages and requests that were refused as malformed")
    refused: int = Field(default=0, description="requests that were refused: no token, a foreign origin, too many")


class FinishedEpisode(BaseModel):
    id: str
    state: State
    environment: str
    row: str
    worker: str
    step: int = Field(description="the training step whose policy it began with")
    reward: float | None
    success: bool | None
    turns: int
    truncated: str = ""
    failure: str | None = None
    attempts: int = 1
    seconds: float
    ended: float = Field(description="when, in seconds since 1970")


class Failure(BaseModel):
    id: str
    worker: str
    error: str
    at: float = Field(description="when, in seconds since 1970")


class Point(BaseModel):
    """One rollout. `reward` is the mean, `success` the share, of the episodes that are done, or None."""

    step: int
    split: Literal["train", "eval"] = "train"
    episodes: int
    failed: int = 0
    dropped: int = 0
    reward: float | None
    success: float | None
    seconds: float


class Status(BaseModel):
    """`/status`. Lists have the newest first, `running` and `series` the oldest."""

    run: str = Field(description="another one after each start of the server")
    protocol: int
    started: float = Field(description="when, in seconds since 1970")
    now: float = Field(description="the server's clock, in seconds since 1970")
    stopping: bool = False
    policy: Policy
    workers: list[WorkerView]
    queues: Queues
    running: list[RunningEpisode] = Field(description="those that were taken first, at most 200")
    counters: Counters
    finished: list[FinishedEpisode]
    failures: list[Failure]
    series: list[Point]


class Turn(BaseModel):
    """A message of an episode. `reward` is what the turn brought, on the policy's messages that were answered."""

    role: str
    text: str
    reward: float | None = None


class EpisodeView(BaseModel):
    """`/episodes/{id}`: an episode that runs, or one of the last that ended."""

    id: str
    state: State
    environment: str
    row: dict[str, Any]
    worker: str
    attempts: int
    step: int
    turns: list[Turn]
    reward: float | None = None
    success: bool | None = None
    truncated: str = ""
    failure: str | None = None
    metrics: dict[str, float] = {}
    seconds: float = 0.0


class Health(BaseModel):
    status: Literal["ok", "stopping"]


class ErrorBody(BaseModel):
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """Every error of the server, in the form of OpenAI's."""

    error: ErrorBody
