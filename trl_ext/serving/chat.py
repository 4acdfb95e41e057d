"""Chat completions as OpenAI's clients write and read them: the part that a policy in training can answer."""

import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_UNSUPPORTED = {
    "stream": "answers come whole: stream=False",
    "tools": "say in the messages what the tools are, and parse the text",
    "functions": "say in the messages what the functions are, and parse the text",
    "logprobs": "log-probabilities stay with the server",
    "audio": "text only",
    "response_format": "say in the messages what the text must look like",
    "stop": "a turn ends where the policy ends it, or after max_tokens",
}


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """Other keys (`name`, `refusal`, ...) are passed over."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    def plain(self) -> dict[str, Any]:
        """As the chat templates take it."""
        return {"role": self.role, "content": self.text}


class ChatRequest(BaseModel):
    """Sampling options (`temperature`, `top_p`, ...) are passed over: the trainer's are those that it trains with."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: Literal[1] | None = None
    stream: Any = None
    tools: Any = None
    functions: Any = None
    logprobs: Any = None
    audio: Any = None
    response_format: Any = None
    stop: Any = None

    @field_validator(*_UNSUPPORTED)
    @classmethod
    def _unsupported(cls, value: Any, info: Any) -> None:
        if value and value != {"type": "text"}:
            raise ValueError(f"not supported: {_UNSUPPORTED[info.field_name]}")

    @property
    def limit(self) -> int | None:
        """How many tokens the turn may have at most; None: as the trainer says."""
        limits = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(limits, default=None)


class Reply(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int = 0
    message: Reply
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """The server keeps the tokens of a completion, by its `id`."""

    id: str = Field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "trl-ext"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
