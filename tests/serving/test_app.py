import re

import pytest
from fastapi.testclient import TestClient

from tests.serving.demo import DemoDesk
from trl_ext.serving.app import create_app
from trl_ext.serving.metrics import prometheus_text
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.replies import Counters, Status


@pytest.fixture
def here():
    return TestClient(create_app(DemoDesk(), ServerOptions()), base_url="http://localhost")


def test_the_views_are_answered_and_the_status_adds_up(here):
    assert here.get("/health").json() == {"status": "ok"}
    status = here.get("/status").json()
    counters = status["counters"]
    assert counters["asked"] == sum(counters[name] for name in ("done", "failed", "dropped", "open"))
    assert here.get("/episodes/" + status["finished"][0]["id"]).json()["turns"][1]["role"] == "assistant"
    assert here.get("/v1/models").json()["data"][0]["id"] == "demo"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/episodes/9-other", 404, "episode_not_found"),
        ("/nothing", 404, None),
        ("/episodes/" + "x" * 101, 400, "invalid"),
    ],
)
def test_what_there_is_not_is_said_as_openai_says_it(here, path, status, code):
    reply = here.get(path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_a_method_that_a_route_does_not_have_is_refused(here):
    reply = here.delete("/status")
    assert reply.status_code == 405
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_the_metrics_are_prometheus_text_and_have_the_numbers_of_the_status(here):
    reply = here.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = reply.text.splitlines()
    assert all(re.fullmatch(r"# (HELP|TYPE) trl_ext_\w+ .+|trl_ext_\w+ -?[0-9.e+-]+", line) for line in lines)
    status = Status(**{**DemoDesk().status().model_dump(), "counters": Counters(asked=7, done=4, failed=2, dropped=1)})
    numbers = dict(line.split() for line in prometheus_text(status).splitlines() if not line.startswith("#"))
    assert [numbers[f"trl_ext_episodes_{name}_total"] for name in ("asked", "done", "failed", "dropped")] == [*"7421"]
    assert float(numbers["trl_ext_reward"]) == status.series[-1].reward


def test_a_policy_that_has_no_rollout_yet_has_no_reward():
    status = Status(**{**DemoDesk().status().model_dump(), "series": []})
    assert "trl_ext_reward" not in prometheus_text(status)
