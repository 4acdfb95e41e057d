"""Episodes in Langfuse: a trace for each, with a span for each of its actions."""

import contextlib
import json
import logging
import re
import time
from typing import Any

from trl_ext.errors import MissingExtraError
from trl_ext.tracking.episodes import EpisodeTracker, Played, actions

_LOGGERS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")


class LangfuseEpisodes(EpisodeTracker):
    """Sends episodes to Langfuse, with the keys and the address of its environment variables.

    A trace is an episode. Its root is of the type "agent"; each action is a "tool" below it: what the model wrote, what
    the environment answered, the reward, and when and for how long the environment worked. What failed has the level
    ERROR and says why. Sending is the business of Langfuse's own threads; where it fails, there is one warning.
    See `EpisodeTracker`.

    Args:
        session: traces of one run are a session in Langfuse: its name, such as the run's.
        tracer_provider: OpenTelemetry's, to keep these spans apart from others; default: the global one.

    Raises:
        MissingExtraError: langfuse is not installed.
    """

    def __init__(self, episodes: int = 64, session: str = "", tracer_provider: Any = None):
        super().__init__(episodes)
        try:
            from langfuse import Langfuse
            from opentelemetry import trace
        except ImportError:
            raise MissingExtraError("traces in Langfuse need: pip install 'trl-ext[tracking]'") from None
        self.session = session
        self._client = Langfuse(tracer_provider=tracer_provider)
        self._tracer = trace.get_tracer("trl_ext", tracer_provider=tracer_provider)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_only_one)

    def write(self, episodes: list[Played], step: int) -> None:
        for one in episodes:
            self._trace(one)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._client.flush()

    def _trace(self, one: Played) -> None:
        from opentelemetry.trace import set_span_in_context

        episode = one.trajectory
        began = episode.called_at[0] if episode.called_at else time.time()
        ended = began + (episode.called_for[0] if episode.called_for else 0.0)  # the reset
        root = self._tracer.start_span("episode", start_time=_ns(began))
        context = set_span_in_context(root)
        for action in actions(episode):
            at = ended if action.began is None else action.began  # a turn that was cut off: the environment saw nothing
            ended = at + (action.seconds or 0.0)
            span = self._tracer.start_span(_name(action.reply), context, start_time=_ns(at))
            failure = episode.failure if action.reward is None else None
            metadata: dict[str, Any] = {"turn": action.turn, "reward": action.reward}
            self._describe(span, "tool", action.reply, action.answer, failure, metadata)
            span.end(_ns(ended))
        outcome = {"reward": episode.reward, "success": episode.success}
        names = ("step", "group", "turns", "sampled_tokens", "truncated", "metrics", "row")
        metadata = {"split": one.split, **outcome, **{name: getattr(episode, name) for name in names}}
        self._describe(root, "agent", episode.opening, json.dumps(outcome), episode.failure, metadata)
        root.end(_ns(ended))

    def _describe(
        self, span: Any, kind: str, said: str, answer: str, failure: str | None, metadata: dict[str, Any]
    ) -> None:
        from langfuse import LangfuseOtelSpanAttributes as Names

        attributes = {
            "gen_ai.operation.name": {"agent": "invoke_agent", "tool": "execute_tool"}[kind],  # or Langfuse drops it
            Names.TRACE_NAME: "episode",
            Names.TRACE_SESSION_ID: self.session or None,
            Names.OBSERVATION_TYPE: kind,
            Names.OBSERVATION_INPUT: said,
            Names.OBSERVATION_OUTPUT: answer,
            Names.OBSERVATION_LEVEL: "ERROR" if failure else None,
            Names.OBSERVATION_STATUS_MESSAGE: failure,
        }
        attributes |= {f"{Names.OBSERVATION_METADATA}.{name}": json.dumps(value) for name, value in metadata.items()}
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})


class _OneWarning(logging.Filter):
    """Lets the first complaint through, as a warning that says what it means for the run."""

    def __init__(self) -> None:
        super().__init__()
        self.warned = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        if self.warned:
            return False
        self.warned = True
        reason = " ".join(record.getMessage().split())[:300]
        record.msg, record.args = f"training goes on, but not all traces reach Langfuse: {reason}", ()
        record.exc_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


_only_one = _OneWarning()


def _name(reply: str) -> str:
    """What an action is called: the tool of a tool call, or the reply where it is one word."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        return str(json.loads(reply)["name"])[:40]
    return reply.strip() if re.fullmatch(r"\s*\w{1,40}\s*", reply) else "action"


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
