"""How a model's text becomes an action: as JSON, inside a tag, as a tool call, as one of a few words, or as it is."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from trl_ext.errors import ActionError, ConfigError

OnInvalid = Literal["observe", "end", "fail"]


class ActionParser(ABC):
    """Turns the text of one turn into the argument of `Environment.step`.

    Args:
        on_invalid: what becomes of a text that is no action. "observe": the model is told what was wrong, and a turn is
            spent. "end": the episode is terminated. "fail": the episode has failed, and is not scored.
        invalid_penalty: taken from the reward of such a turn, at least 0.
    """

    def __init__(self, *, on_invalid: OnInvalid = "observe", invalid_penalty: float = 0.0) -> None:
        if on_invalid not in get_args(OnInvalid):
            raise ConfigError(f"on_invalid = {on_invalid!r}: must be one of {', '.join(get_args(OnInvalid))}")
        if not 0 <= invalid_penalty < float("inf"):
            raise ConfigError(f"invalid_penalty = {invalid_penalty}: must be at least 0 and finite")
        self.on_invalid = on_invalid
        self.invalid_penalty = invalid_penalty

    @abstractmethod
    def parse(self, text: str) -> Any:
        """The action.

        Raises:
            ActionError: there is none; the message tells the model what was expected.
        """


class TextParser(ActionParser):
    """The text itself, without the white space around it, is the action. An empty one is none."""

    def parse(self, text: str) -> str:
        if not text.strip():
            raise ActionError("The reply was empty.")
        return text.strip()


class ChoiceParser(ActionParser):
    """One of a few words: `ChoiceParser(["left", "right"])`, or a mapping from the words to the actions.

    Capitals do not matter. Other words may stand around the choice, but no second choice; `exact=True` allows neither.
    """

    def __init__(self, choices: Iterable[str] | Mapping[str, Any], *, exact: bool = False, **policy: Any) -> None:
        super().__init__(**policy)
        actions = choices if isinstance(choices, Mapping) else {choice: choice for choice in choices}
        if not actions:
            raise ConfigError("choices: must name at least one action")
        self.actions = {word.casefold(): action for word, action in actions.items()}
        self.exact = exact

    def parse(self, text: str) -> Any:
        said = text.strip().casefold()
        if said in self.actions:
            return self.actions[said]
        if not self.exact:
            found = [word for word in self.actions if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", said)]
            if len(found) == 1:
                return self.actions[found[0]]
        raise ActionError(f"Reply with one of: {', '.join(self.actions)}.")


class TagParser(ActionParser):
    """What stands between the last `<tag>` and its `</tag>`, read by another parser (default: as text)."""

    def __init__(self, tag: str = "action", *, inner: ActionParser | None = None, **policy: Any) -> None:
        super().__init__(**policy)
        self.tag = tag
        self.inner = inner or TextParser()

    def parse(self, text: str) -> Any:
        before, closing, _ = text.rpartition(f"</{self.tag}>")
        _, opening, content = before.rpartition(f"<{self.tag}>")
        if not (opening and closing):
            raise ActionError(f"Write your action as <{self.tag}>...</{self.tag}>.")
        return self.inner.parse(content)


class JsonParser(ActionParser):
    """The last JSON object in the text, as a dict; prose and code fences around it are passed over."""

    def __init__(self, required: Iterable[str] = (), **policy: Any) -> None:
        super().__init__(**policy)
        self.required = tuple(required)

    def parse(self, text: str) -> dict[str, Any]:
        action = _last_json_object(text)
        if action is None:
            raise ActionError("Reply with one JSON object.")
        missing = [key for key in self.required if key not in action]
        if missing:
            raise ActionError(f"The JSON object lacks {', '.join(map(repr, missing))}.")
        return action


class ToolCallParser(ActionParser):
    """A tool call, `{"name": ..., "arguments": {...}}`, bare or inside `<tool_call>`, as a dict of those two keys.

    `parameters` is taken for `arguments`, as Llama's templates write it. `names`, where given, are the tools there are.
    """

    def __init__(self, names: Iterable[str] = (), **policy: Any) -> None:
        super().__init__(**policy)
        self.names = tuple(names)

    def parse(self, text: str) -> dict[str, Any]:
        call = _last_json_object(text)
        if call is None or not isinstance(call.get("name"), str):
            raise ActionError('Reply with one tool call: {"name": ..., "arguments": {...}}.')
        if self.names and call["name"] not in self.names:
            raise ActionError(f"There is no tool {call['name'][:40]!r}; the tools are: {', '.join(self.names)}.")
        arguments = call.get("arguments", call.get("parameters", {}))
        if not isinstance(arguments, dict):
            raise ActionError("The arguments of a tool call must be a JSON object.")
        return {"name": call["name"], "arguments": arguments}


def _last_json_object(text: str) -> dict[str, Any] | None:
    """The last object that is not inside another one. A brace that begins no object is passed over.

    None for a text with more than `_STRAY` such braces: each may have the whole text behind it read once more.
    """
    decoder, found, position, stray = json.JSONDecoder(), None, text.find("{"), 0
    while position >= 0:
        try:
            found, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):  # ValueError: also an integer of more digits than Python converts
            end, stray = position + 1, stray + 1
            if stray > _STRAY:
                return None
        position = text.find("{", end)
    return found


_STRAY = 200
