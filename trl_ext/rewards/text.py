"""Completions and prompts as text, whatever their format, and the part of a completion that is scored."""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

THINK = re.compile(r"^.*?</think>\s*", re.DOTALL)


def as_text(value: Any) -> str:
    """The text of a plain string, of a chat's last message, or of its text blocks; "" for None."""
    if isinstance(value, list):
        value = value[-1].get("content") if value and isinstance(value[-1], dict) else ""
    if isinstance(value, list):  # content blocks
        value = "".join(block.get("text") or "" for block in value if isinstance(block, dict))
    return value if isinstance(value, str) else "" if value is None else str(value)


class Extract(BaseModel):
    """Which part of a completion is scored: what is not found is "", which is wrong and not unscorable.

    `think`: what follows `</think>`; `boxed`: the content of the last `\\boxed{...}`; `tag`: that of the last `<tag>`;
    `regex`: the first group of the last match, or the match.
    """

    model_config = ConfigDict(extra="forbid")
    type: Literal["think", "boxed", "tag", "regex"]
    tag: str | None = None
    pattern: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> "Extract":
        if self.type == "tag" and not self.tag:
            raise ValueError("extract by tag needs 'tag'")
        if self.type == "regex" and not self.pattern:
            raise ValueError("extract by regex needs 'pattern'")
        if self.pattern is not None:
            compile_pattern(self.pattern)
        return self

    def __call__(self, text: str) -> str:
        if self.type == "think":
            return THINK.sub("", text, count=1)
        if self.type == "boxed":
            return last_boxed(text)
        if self.type == "tag":
            end = text.rfind(f"</{self.tag}>")
            start = text.rfind(f"<{self.tag}>", 0, end) if end >= 0 else -1
            return text[start + len(str(self.tag)) + 2 : end].strip() if start >= 0 else ""
        return _last_match(str(self.pattern), text)


def last_boxed(text: str) -> str:
    """The content of the last `\\boxed{...}`, its braces balanced; "" where there is none or it is not closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    depth = 0
    for position in range(start + 6, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + 7 : position]
    return ""


def compile_pattern(pattern: str) -> Any:
    """A pattern of the `regex` package, whose searches can be given a timeout; the standard library's cannot.

    Raises:
        ValueError: the pattern is malformed.
    """
    import regex

    try:
        return regex.compile(pattern, regex.DOTALL)
    except regex.error as error:
        raise ValueError(f"pattern {pattern!r} is malformed: {error}") from None


def _last_match(pattern: str, text: str, timeout: float = 1.0) -> str:
    found = ""
    try:
        for match in compile_pattern(pattern).finditer(text, timeout=timeout):
            found = match.group(1) if match.re.groups else match.group()
    except TimeoutError:
        return ""
    return (found or "").strip()
