"""The tokens of what the environment says: the opening, and what stands between two turns of the model."""

from typing import Any

from trl_ext.agents.environment import Messages
from trl_ext.errors import ConfigError

_DUMMY = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


class Renderer:
    """Tokenises the environment's text, and only that: the model's own tokens are never decoded and encoded again.

    With `chat`, by the chat template. The tokens between two turns are those that the template puts after the end of an
    assistant's message: it renders a stand-in conversation of two messages with the new ones after it, and what follows
    the stand-in's end is taken. That is the way of TRL's tool loop, here by counting stop tokens, so that templates
    which write an assistant's last message otherwise than an earlier one (Qwen3's thoughts) can be used too.

    Without, texts follow one another as they are: the environment brings the separators.

    Args:
        stop_tokens: what ends a turn of the model.

    Raises:
        ConfigError: `chat` and the tokenizer has no template, or the template does not end an assistant's message.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat: bool,
        stop_tokens: list[int],
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self.tokenizer, self.chat, self.stop_tokens = tokenizer, chat, frozenset(stop_tokens)
        self._options = {"chat_template": chat_template, **(chat_template_kwargs or {})}
        if chat:
            if not (tokenizer.chat_template or chat_template):
                raise ConfigError("chat=True: the tokenizer has no chat template; give it one, or chat=False")
            # with a generation prompt: without, some templates end the whole conversation with a stop token
            self._ends_before = len(self._ends(self._template(_DUMMY)))
            if self._ends_before == 0:
                raise ConfigError(
                    "the chat template ends an assistant's message with none of the model's stop tokens "
                    f"({sorted(self.stop_tokens)}): set generation_config.eos_token_id to what it ends with"
                )

    def opening(self, prompt: str | Messages, messages: Messages) -> tuple[Messages, list[int]]:
        """The conversation before the model's first turn, and its tokens: the dataset's prompt, then the environment's.

        As with TRL's `environment_factory`, what the environment says is appended to the prompt's last message where
        both are the user's.
        """
        before: Messages = prompt if isinstance(prompt, list) else []
        if prompt and isinstance(prompt, str):
            before = [{"role": "user", "content": prompt}]
        first = messages[0] if messages else None
        if before and first and before[-1]["role"] == first["role"] == "user":
            joined = _joined(before[-1]["content"], first["content"])
            conversation = [*before[:-1], {**before[-1], "content": joined}, *messages[1:]]
        else:
            conversation = [*before, *messages]
        if self.chat:
            return conversation, self._template(conversation)
        return conversation, list(self.tokenizer(text=_text(conversation))["input_ids"])

    def between(self, messages: Messages, ended: bool) -> list[int]:
        """The tokens from a turn of the model to its next one: `messages`, and what the template puts around them.

        `ended`: the turn ended with a stop token. Where it was cut off, the template's is put in.
        """
        if not self.chat:
            return list(self.tokenizer(text=_text(messages), add_special_tokens=False)["input_ids"])
        ids = self._template([*_DUMMY, *messages])
        end = self._ends(ids)[self._ends_before - 1]
        return ids[end + 1 if ended else end :]

    def _ends(self, ids: list[int]) -> list[int]:
        return [place for place, token in enumerate(ids) if token in self.stop_tokens]

    def _template(self, messages: Messages) -> list[int]:
        rendered = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **self._options
        )
        return list(rendered["input_ids"])


def _text(messages: Messages) -> str:
    return "".join(str(message.get("content") or "") for message in messages)


def _joined(first: Any, second: Any) -> Any:
    """Two contents one after the other: text, or lists of blocks."""
    if isinstance(first, str) and isinstance(second, str):
        return first + second
    blocks = [[{"type": "text", "text": part}] if isinstance(part, str) else part for part in (first, second) if part]
    return [block for part in blocks for block in part]
