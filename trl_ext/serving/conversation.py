"""What an agent has said to the policy in an episode: whether its next request goes on from there."""

from collections.abc import Sequence
from typing import Any

from trl_ext.serving.chat import ChatCompletion, ChatMessage
from trl_ext.serving.refusal import Refusal

Message = dict[str, Any]


class Conversation:
    """The messages of an episode, the policy's answers among them; `last` is the newest completion."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.last: ChatCompletion | None = None

    def new_in(self, given: Sequence[ChatMessage]) -> list[Message] | None:
        """The messages that `given` has after those that are known. None: it is the last request once more.

        Only they are tokenised; what the policy wrote stays in the tokens that it sampled, and must be given back
        unchanged (white space around it does not matter). To forget or to summarise what was said is not supported: an
        episode is one growing conversation.

        Raises:
            Refusal: the request does not go on from what was said.
        """
        messages = [message.plain() for message in given]
        if self.last is not None and _same(messages, self.messages[:-1]):
            return None
        known = len(self.messages)
        if not _same(messages[:known], self.messages):
            pairs = zip(messages, self.messages, strict=False)
            same = next((place for place, (one, other) in enumerate(pairs) if not _same([one], [other])), len(messages))
            raise Refusal(
                409,
                f"message {same + 1} is not what this episode has there: a request must repeat all messages so far "
                "unchanged, the policy's too, and add new ones; claim another episode for another conversation",
                "history_rewritten",
            )
        new = messages[known:]
        if not new:
            raise Refusal(400, "there is no new message for the policy to answer", "no_new_message")
        if self.last is not None and any(message["role"] == "assistant" for message in new):
            raise Refusal(409, "an assistant's message that the policy did not write", "history_rewritten")
        return new

    def answer(self, new: list[Message], completion: ChatCompletion) -> None:
        """Take what the policy answered to `new`."""
        self.messages += [*new, completion.choices[0].message.model_dump(include={"role", "content"})]
        self.last = completion


def _same(some: Sequence[Message], others: Sequence[Message]) -> bool:
    return len(some) == len(others) and all(
        one["role"] == other["role"] and _text(one) == _text(other) for one, other in zip(some, others, strict=True)
    )


def _text(message: Message) -> str:
    text: str = message["content"]
    return text.strip() if message["role"] == "assistant" else text
