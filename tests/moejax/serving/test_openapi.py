"""Requests made from the OpenAPI document find no failure of the server, and no error without shape."""

from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

import moejax
from tests.moejax.serving.conftest import SIZES
from tests.moejax.serving.live import WAIT_SECONDS, Live, running

EXAMPLES = 40  # per operation
KEY = {"authorization": "Bearer key"}


@pytest.fixture(scope="module")
def document(live: Live) -> dict:
    with live.client() as client:
        return client.get("/openapi.json").json()


def test_document_names_all_routes(document: dict) -> None:
    assert {"/tokenize", "/detokenize"} <= set(document["paths"])
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics"} <= set(document["paths"])


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_bodies_and_what_is_refused_are_documented(document: dict, path: str) -> None:
    operation = document["paths"][path]["post"]
    (content,) = operation["requestBody"]["content"].values()
    schemas = document["components"]["schemas"]
    assert schemas[content["schema"]["$ref"].rpartition("/")[2]]["properties"]
    statuses = set(operation["responses"])
    assert {"200", "400", "401", "403", "404", "413", "415", "500", "503"} <= statuses
    assert ("429" in statuses) == path.startswith("/v1")
    assert "422" not in statuses
    for status in statuses - {"200"}:
        (answer,) = operation["responses"][status]["content"].values()
        assert schemas[answer["schema"]["$ref"].rpartition("/")[2]]["required"] == ["error"]


def test_statuses_that_happen_without_a_body(model: "moejax.Model") -> None:
    """Of each kind one: a wrong key, another host, another model, too much, a full queue, the end."""
    with running(model, api_key="key", limit=2048, **SIZES) as live, live.client() as client:
        document = client.get("/openapi.json", headers=KEY).json()
        found: dict[int, str] = {}
        body = {"prompt": "a"}
        for path, given, content in (
            ("/v1/completions", {}, body),
            ("/v1/completions", {**KEY, "host": "a.example"}, body),
            ("/v1/completions", KEY, {**body, "model": "b"}),
            ("/v1/completions", KEY, {"prompt": "a" * 4096}),
            ("/v1/completions", {**KEY, "content-encoding": "br"}, body),
        ):
            answer = client.post(path, headers=given, json=content)
            found[answer.status_code] = path
        with live.engine.paused():
            live.engine.drain(WAIT_SECONDS)
            found[client.post("/v1/completions", headers=KEY, json=body).status_code] = "/v1/completions"
            health = client.get("/health")
    assert set(found) == {401, 403, 404, 413, 415, 503}
    for status, path in found.items():
        assert str(status) in document["paths"][path]["post"]["responses"]
    documented = document["paths"]["/health"]["get"]["responses"]["503"]["content"]["application/json"]["schema"]
    known = document["components"]["schemas"][documented["$ref"].rpartition("/")[2]]["properties"]
    assert health.status_code == 503 and set(health.json()) <= set(known)


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
            known = document["paths"][case.operation.path][case.operation.method]["responses"]
            assert str(answer.status_code) in known, (case.as_curl_command(), answer.text)
            if answer.status_code >= 400 and not answer.request.method == "HEAD":
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        check()
    assert {200, 400, 404} <= statuses
    assert httpx.get(f"{live.url}/health").status_code == 200
