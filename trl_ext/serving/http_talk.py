"""An agent's side of an episode by HTTP: the request that waits for the policy, and what was said before."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trl_ext.serving.chat import ChatCompletion, Choice, Reply, Usage
from trl_ext.serving.conversation import Conversation
from trl_ext.serving.refusal import Refusal

if TYPE_CHECKING:
    from trl_ext.serving.desk import Said


@dataclass(eq=False)
class Talk:
    """`closed`: the policy has no room for another turn in this episode."""

    conversation: Conversation = field(default_factory=Conversation)
    pending: "Pending | None" = None
    closed: Refusal | None = None


class Pending:
    """A request for a completion. The same request, sent again, waits with it.

    Args:
        asked: all messages of the request.
        new: those that the policy has not seen.
        limit: tokens that the answer may have.
        talk: None for a request that belongs to no episode.
    """

    def __init__(
        self, asked: list[dict[str, Any]], new: list[dict[str, Any]], limit: int | None, talk: Talk | None = None
    ):
        self.asked, self.new, self.limit, self.talk = asked, new, limit, talk
        self.first = talk is None or talk.conversation.last is None
        self.future: asyncio.Future[ChatCompletion] = asyncio.get_running_loop().create_future()
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())  # nobody may wait
        if talk is not None:
            talk.pending = self

    def completion(self, said: "Said", model: str) -> ChatCompletion:
        """The policy's turn as an answer."""
        return ChatCompletion(
            model=model,
            choices=[Choice(message=Reply(content=said.text), finish_reason=said.finish)],
            usage=Usage(
                prompt_tokens=said.all_tokens - said.tokens,
                completion_tokens=said.tokens,
                total_tokens=said.all_tokens,
            ),
        )

    def take(self, outcome: ChatCompletion | Refusal) -> None:
        """Note what the answer is."""
        if self.talk is not None:
            self.talk.pending = None
            if isinstance(outcome, ChatCompletion):
                self.talk.conversation.answer(self.new, outcome)

    def deliver(self, outcome: ChatCompletion | Refusal) -> None:
        """Wake who waits; in the event loop."""
        if self.future.done():
            return
        if isinstance(outcome, Refusal):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)
