"""The server does what its OpenAPI schema says, for whatever the schema allows and much that it does not."""

import random
import threading
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from trl_ext.serving.desk import Desk, Said
from trl_ext.serving.http_talk import Pending
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.server import RolloutServer

TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
BOUNDED = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
ROWS = [(str(number), {"prompt": "", "seed": number}) for number in range(1000)]


@pytest.fixture(scope="module")
def server() -> Iterator[RolloutServer]:
    """With more episodes than are asked for, and a policy that has an answer to everything."""
    with RolloutServer(ServerOptions(port=0, token=TOKEN, rate=1e6, burst=10**6)) as server:
        ended = threading.Event()
        policy = threading.Thread(target=_answer, args=(server.desk, ended))
        policy.start()
        yield server
        ended.set()
        policy.join()


def _answer(desk: Desk, ended: threading.Event) -> None:
    tickets = desk.ask(ROWS, "sums", version=0)
    while not ended.is_set():
        moves, _ = desk.collect(tickets, waiting=False, gather=0.0, timeout=0.05) or ([], [])
        pending = [move for move in moves if isinstance(move.message, Pending)]
        desk.say([(move, Said("3", "stop", 5, 1)) for move in pending])


@pytest.fixture(scope="module")
def api(server: RolloutServer) -> schemathesis.BaseSchema:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=BEARER)
    at_random = random.Random(0)

    @schema.hook
    def map_path_parameters(context, parameters):
        """Every second lease is one that runs."""
        if parameters and "lease" in parameters and at_random.random() < 0.5:
            claimed = httpx.post(f"{server.url}/episodes/claim", headers=BEARER, json={}).json()
            parameters["lease"] = claimed["lease"]
        return parameters

    return schema


def test_the_api_is_what_its_schema_says(api):
    operations = [result.ok() for result in api.get_all_operations()]
    assert len(operations) >= 9
    for operation in operations:

        @BOUNDED
        @given(case=operation.as_strategy())
        def check(case):
            answer = case.call(headers=BEARER)
            assert answer.status_code < 500 or answer.json()["error"]["code"] == "no_episode", answer.text
            case.validate_response(answer, excluded_checks=[not_a_server_error, positive_data_acceptance])

        check()
