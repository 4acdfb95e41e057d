import dataclasses
import logging
from types import SimpleNamespace

import pytest

from tests.tracking.langfuse_server import LangfuseServer
from tests.tracking.played import CUT, DONE, FAILED, LOST
from trl_ext.errors import MissingExtraError
from trl_ext.tracking import langfuse_episodes
from trl_ext.tracking.langfuse_episodes import LangfuseEpisodes

KIND, META = "langfuse.observation", "langfuse.observation.metadata"


@pytest.fixture
def tracker(monkeypatch, request):
    """A function that makes one which sends to a URL, with keys of its own: Langfuse keeps a client for each."""
    from opentelemetry.sdk.trace import TracerProvider

    made = []

    def make(url, timeout=60):
        monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", f"pk {request.node.name}")
        monkeypatch.setenv("LANGFUSE_SECRET_KEY", "sk")
        monkeypatch.setenv("LANGFUSE_BASE_URL", url)
        monkeypatch.setenv("LANGFUSE_TIMEOUT", str(timeout))
        made.append(LangfuseEpisodes(session="my run", tracer_provider=TracerProvider()))
        return made[-1]

    yield make
    for one in made:
        one._client.shutdown()


def send(tracker, *episodes):
    tracker(episodes, "train")
    tracker.on_log(None, SimpleNamespace(global_step=3), None)
    tracker.on_train_end(None, None, None)


def test_an_episode_is_a_trace_with_a_span_for_each_action(tracker):
    with LangfuseServer() as server:
        send(tracker(server.url), DONE)
    root, first, second = sorted(server.spans, key=lambda span: span["began"])
    assert (root["name"], root["parent"], root["trace"]) == ("episode", "", first["trace"])
    assert [span["parent"] for span in (first, second)] == [root["id"]] * 2
    assert [span["name"] for span in (first, second)] == ["left", "search"]
    assert [(span["began"], span["ended"]) for span in (root, first, second)] == [
        (1000.0, 1003.5), (1001.0, 1001.25), (1003.0, 1003.5),
    ]  # fmt: skip
    assert [span[f"{KIND}.type"] for span in (root, first, second)] == ["agent", "tool", "tool"]
    assert [(first[f"{KIND}.input"], first[f"{KIND}.output"]), second[f"{KIND}.output"]] == [
        ("left", "no"), "yes\ndone",
    ]  # fmt: skip
    assert [(span[f"{META}.turn"], span[f"{META}.reward"]) for span in (first, second)] == [(1, -0.25), (2, 1.0)]
    assert (root[f"{KIND}.input"], root[f"{KIND}.output"]) == ("be kind\nwhich?", {"reward": 0.75, "success": True})
    facts = {"step": 3, "split": "train", "turns": 2, "sampled_tokens": 4, "reward": 0.75, "row": DONE.row}
    assert {name: root[f"{META}.{name}"] for name in facts} == facts
    assert {span["session.id"] for span in server.spans} == {"my run"}
    assert not any(f"{KIND}.level" in span for span in server.spans)
    assert len(server.authorizations) == 1


def test_what_failed_is_an_error_that_says_why(tracker):
    with LangfuseServer() as server:
        send(tracker(server.url), FAILED, LOST, CUT)
    assert len({span["trace"] for span in server.spans}) == 3
    errors = [span for span in server.spans if span.get(f"{KIND}.level") == "ERROR"]
    assert [(span["name"], span[f"{KIND}.status_message"]) for span in errors] == [
        ("left", "turn 1: ValueError: broken"),
        ("episode", "turn 1: ValueError: broken"),
        ("episode", "reset: OSError: no such mailbox"),
    ]
    assert (errors[0]["began"], errors[0]["ended"]) == (1001.0, 1021.0)  # as long as it hung
    assert (errors[2]["began"], errors[2]["ended"]) == (1000.0, 1002.0)  # its reset
    cut = next(span for span in server.spans if span["name"] == "righ")
    assert (cut["began"], cut["ended"], cut[f"{META}.reward"]) == (1001.25, 1001.25, None)


def test_the_actions_before_the_one_that_failed_are_no_errors(tracker):
    late = dataclasses.replace(DONE, messages=DONE.messages[:5], rewards=[-0.25], failure="turn 2: it broke")
    with LangfuseServer() as server:
        send(tracker(server.url), late)
    assert {span["name"]: span.get(f"{KIND}.level") for span in server.spans} == {
        "left": None, "search": "ERROR", "episode": "ERROR",
    }  # fmt: skip


@pytest.mark.parametrize("status", [None, 500])
def test_where_langfuse_cannot_be_reached_there_is_one_warning(tracker, caplog, monkeypatch, status):
    monkeypatch.setattr(langfuse_episodes._only_one, "warned", False)
    with LangfuseServer(status or 200) as server:
        one = tracker(server.url if status else "http://127.0.0.1:9", timeout=1)
        for _ in range(3):
            send(one, DONE)
    (record,) = [one for one in caplog.records if one.name in langfuse_episodes._LOGGERS]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("training goes on, but not all traces reach Langfuse: ")
    assert server.requests >= (3 if status else 0)  # more, where the client sends some spans before it is told to


def test_langfuse_that_is_not_installed_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "langfuse", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'trl-ext\[tracking\]'"):
        LangfuseEpisodes()


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        ('{"name": "read", "arguments": {}}', "read"),
        (" left\n", "left"),
        ("I go left", "action"),
        ('{"name": 3}', "3"),
        ('["x"]', "action"),
        ("12", "12"),
        ("", "action"),
    ],
)
def test_a_span_is_called_by_what_was_done(reply, name):
    assert langfuse_episodes._name(reply) == name
