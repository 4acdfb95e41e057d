"""What workers and the server say to each other: JSON texts on a socket, and the bodies of the requests of agents.

A worker says `hello` and gets `welcome`. For each `lease` it resets an environment and says `opened`; for each `act` it
lets the environment take the policy's text as a step and says `stepped`. The episode's conversation and tokens are kept
by the server. `over` says that an episode has ended, or is not the worker's any more.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, TypeAdapter

PROTOCOL = 1
MOST_EPISODES = 10_000  # of a worker, at a time

Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=10_000)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EnvironmentMessage(BaseModel):
    """A chat message of an environment; more keys than these are the chat template's affair."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    role: Annotated[str, Field(min_length=1, max_length=50)]
    content: JsonValue = None


EnvironmentMessages = Annotated[list[EnvironmentMessage], Field(max_length=1000)]


class Hello(_Message):
    """The first message. `environments`: by the names that the trainer's side calls them; empty: any."""

    type: Literal["hello"] = "hello"
    protocol: int
    environments: Annotated[list[Name], Field(max_length=100)] = []
    concurrency: Annotated[int, Field(ge=1, le=MOST_EPISODES)] = 1


class Opened(_Message):
    """The environment's first observation."""

    type: Literal["opened"] = "opened"
    lease: Name
    messages: EnvironmentMessages


class Stepped(_Message):
    """What the environment answered to turn `turn` (the first is 1). `info`: numbers, `success` and `invalid`."""

    type: Literal["stepped"] = "stepped"
    lease: Name
    turn: Annotated[int, Field(ge=1)]
    messages: EnvironmentMessages = []
    reward: FiniteFloat
    terminated: bool
    truncated: bool
    info: Annotated[dict[Name, bool | FiniteFloat | Text], Field(max_length=200)] = {}


class Failed(_Message):
    """The environment raised or took too long; `error` is one line. The episode is not scored."""

    type: Literal["failed"] = "failed"
    lease: Name
    error: Text


class Returned(_Message):
    """The worker cannot go on with an episode, which is not its fault: another may play it."""

    type: Literal["returned"] = "returned"
    lease: Name


class Heartbeat(_Message):
    type: Literal["heartbeat"] = "heartbeat"


class Draining(_Message):
    """The worker ends those that it plays, and wants no more."""

    type: Literal["draining"] = "draining"


FromWorker = Annotated[Hello | Opened | Stepped | Failed | Returned | Heartbeat | Draining, Field(discriminator="type")]
from_worker: TypeAdapter[Any] = TypeAdapter(FromWorker)


class Welcome(_Message):
    """`heartbeat`: the seconds between two heartbeats; a worker that is silent for three of them has gone.

    `max_message`: the bytes that a message of the worker may have.
    """

    type: Literal["welcome"] = "welcome"
    protocol: int = PROTOCOL
    run: str
    heartbeat: float
    max_message: int


class Lease(_Message):
    """An episode to play. `row` are the columns for `reset(**row)`, the dataset's `prompt` among them."""

    type: Literal["lease"] = "lease"
    lease: str
    environment: str
    row: dict[str, JsonValue]


class Act(_Message):
    """What the policy wrote in turn `turn`."""

    type: Literal["act"] = "act"
    lease: str
    turn: int
    text: str


class Over(_Message):
    """The environment is not needed any more."""

    type: Literal["over"] = "over"
    lease: str
    reason: str


class Wait(_Message):
    """There is no episode to play. They are sent as they come, there is no need to ask."""

    type: Literal["wait"] = "wait"
    reason: str


class Stopping(_Message):
    """The server is about to close. What is played is lost; come back when it is there again."""

    type: Literal["stopping"] = "stopping"


class Refused(_Message):
    """A message that made no sense. After too many of them the socket is closed."""

    type: Literal["refused"] = "refused"
    error: str


FromServer = Annotated[Welcome | Lease | Act | Over | Wait | Stopping | Refused, Field(discriminator="type")]
from_server: TypeAdapter[Any] = TypeAdapter(FromServer)


class ClaimRequest(BaseModel):
    """An agent asks for an episode. `agent` is the name that the page shows."""

    model_config = ConfigDict(extra="forbid")

    agent: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_.-]+$")] = "agent"
    environments: Annotated[list[Name], Field(max_length=100)] = []


class Claim(BaseModel):
    """`base_url` goes into an OpenAI client; `seconds` is how long the agent may be silent between two requests."""

    id: str
    lease: str
    environment: str
    row: dict[str, JsonValue]
    base_url: str = ""
    seconds: float


class ResultRequest(BaseModel):
    """How an episode ended. `rewards`, if given, has one for each turn of the policy, and `reward` is left out.

    `failure`: it cannot be scored, and is left out of the training. `returned`: the agent cannot go on with it, another
    may play it. `metrics` are averaged in the log.
    """

    model_config = ConfigDict(extra="forbid")

    reward: FiniteFloat | None = None
    rewards: Annotated[list[FiniteFloat], Field(max_length=10_000)] | None = None
    success: bool | None = None
    metrics: Annotated[dict[Name, FiniteFloat], Field(max_length=100)] = {}
    failure: Text | None = None
    returned: bool = False


class ResultReply(BaseModel):
    """`counted`: False for a result that came before, and for an episode that was given back."""

    counted: bool
