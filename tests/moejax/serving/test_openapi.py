"""Requests made from the OpenAPI document find no failure of the server, and no error without shape."""

from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from tests.moejax.serving.live import WAIT_SECONDS, Live

EXAMPLES = 40  # per operation


@pytest.fixture(scope="module")
def document(live: Live) -> dict:
    with live.client() as client:
        return client.get("/openapi.json").json()


def test_document_names_all_routes(document: dict) -> None:
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics"} <= set(document["paths"])


def test_no_request_is_a_failure_of_the_server(live: Live, document: dict) -> None:
    schema = schemathesis.openapi.from_dict(document)
    found: list[Any] = list(schema.get_all_operations())
    operations = [operation.ok() for operation in found]
    assert len(operations) >= 7
    statuses: set[int] = set()
    for operation in operations:
        if "baseline" in operation.path:
            continue  # starts a process: tested on its own

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            database=None,
        )
        @hypothesis.seed(0)
        @hypothesis.given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            answer = case.call(base_url=live.url, timeout=WAIT_SECONDS)
            statuses.add(answer.status_code)
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)
            if answer.status_code >= 400 and not answer.request.method == "HEAD":
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        check()
    assert {200, 400, 404} <= statuses
    assert httpx.get(f"{live.url}/health").status_code == 200
