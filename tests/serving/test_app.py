from fastapi.testclient import TestClient

from tests.serving.demo import DemoDesk
from trl_ext.serving.app import create_app
from trl_ext.serving.options import ServerOptions

TOKEN = "a-long-token"


def client(token=None, host="localhost", hostile="", **options):
    app = create_app(DemoDesk(hostile), ServerOptions(token=token, **options))
    return TestClient(app, base_url=f"http://{host}", raise_server_exceptions=True)


def test_the_views_are_answered_and_the_status_adds_up():
    here = client()
    assert here.get("/health").json() == {"status": "ok"}
    status = here.get("/status").json()
    counters = status["counters"]
    assert counters["asked"] == sum(counters[name] for name in ("done", "failed", "dropped", "open"))
    assert here.get("/episodes/" + status["finished"][0]["id"]).json()["turns"][1]["role"] == "assistant"
    assert here.get("/v1/models").json()["data"][0]["id"] == "demo"
    assert "trl_ext_episodes_asked_total" in here.get("/metrics").text
