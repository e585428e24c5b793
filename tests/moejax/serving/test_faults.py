"""What can go wrong between a client and the server, over real sockets."""

import itertools
import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest

import moejax
from moejax.decoding.scheduler import Scheduler
from moejax.serving.fair_queue import share_of
from tests.messages import says
from tests.moejax.serving.conftest import SIZES
from tests.moejax.serving.live import WAIT_SECONDS, Live, running, settled

COMPLETIONS = "/v1/completions"
LONG: dict[str, Any] = {"prompt": "a", "max_tokens": 300, "ignore_eos": True}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error in an answer, whose shape is checked."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"{", ("JSON",)),
        (b"", ("body", "character 0")),
        (b"[]", ("body", "dictionary")),
        (b"null", ("body",)),
        (b'{"prompt": "\xff\xfe"}', ("body",)),
        (b'{"prompt": "a", "max_tokens": 1e999}', ("max_tokens", "an integer", "inf")),
        (b'{"prompt": "a", "temperature": NaN}', ("temperature",)),
        (b'{"prompt": {"a": 1}}', ("prompt",)),
        (b'{"prompt": "\\ud800"}', ("surrogate",)),
        (b'{"prompt": "a", "model": "\\ud800"}', ("does not exist",)),
        (b'{"prompt": "a", "\\ud800": 1}', ("unicode string",)),
        (b'{"prompt": "a", "stop": ""}', ("stop", "non-empty")),
        (b'{"prompt": "a", "max_tokens": true}', ("max_tokens", "integer")),
        (b"[" * 100_000, ("body",)),
    ],
    ids=lambda value: str(value[:24]) if isinstance(value, bytes) else "",
)
def test_malformed_bodies(live: Live, content: bytes, facts: tuple[str, ...]) -> None:
    with live.client() as client:
        answer = client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 404)
    error = error_of(answer)
    says(error["message"], *facts)


@pytest.mark.parametrize(
    ("headers", "got"),
    [
        ({}, "there is none"),
        ({"content-type": "application/x-www-form-urlencoded"}, "got 'application/x-www-form-urlencoded'"),
    ],
    ids=["none", "what curl sends"],
)
def test_bodies_that_are_not_said_to_be_json(live: Live, headers: dict[str, str], got: str) -> None:
    with live.client() as client:
        answer = client.post(COMPLETIONS, content=b'{"prompt": "a"}', headers=headers)
    assert answer.status_code == 400
    says(error_of(answer)["message"], "content-type: application/json", got)


def test_requests_that_are_too_large(live: Live) -> None:
    body = json.dumps({"prompt": "a" * 10_000_000}).encode()
    with live.client() as client:
        assert error_of(client.post(COMPLETIONS, content=body))["code"] == "request_too_large"
        in_parts = (body[start : start + 65536] for start in range(0, len(body), 65536))
        answer = client.post(COMPLETIONS, content=in_parts, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert "larger than 1048576 bytes" in error_of(answer)["message"]
        assert client.get("/health").status_code == 200


def test_wrong_paths_and_methods(live: Live) -> None:
    with live.client() as client:
        for answer, status in ((client.get("/v1/nothing"), 404), (client.get(COMPLETIONS), 405)):
            assert answer.status_code == status
            error_of(answer)
        says(error_of(client.get("/v1/nothing"))["message"], "'/v1/nothing'", "/openapi.json")
        says(error_of(client.post("/completions"))["message"], "'/completions'", "/v1")


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_goes_away_frees_its_slot(live: Live, stream: bool) -> None:
    """Before its first token and in the middle of a stream."""
    aborted = live.metric("vllm:request_success_total", finished_reason="abort") if stream is False else None
    with live.client() as client:
        if stream:
            with client.stream("POST", COMPLETIONS, json={**LONG, "stream": True}) as answer:
                next(answer.iter_lines())
        else:
            with live.engine.paused():
                with request_alone(live, LONG):
                    await_waiting(live, 1)
    settled(live)
    after = live.metric("vllm:request_success_total", finished_reason="abort")
    assert aborted is None or after == aborted + 1


def request_alone(live: Live, asked: dict[str, Any]) -> socket.socket:
    """A connection on which a completion was asked for, to be read or closed."""
    host, port = live.url.removeprefix("http://").split(":")
    body = json.dumps(asked).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    connection = socket.create_connection((host, int(port)))
    connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def await_waiting(live: Live, count: int) -> None:
    """Returns when so many requests wait for the engine."""
    until = time.monotonic() + WAIT_SECONDS
    while live.metric("vllm:num_requests_waiting") < count:
        assert time.monotonic() < until, "the request does not come"
        time.sleep(0.01)


def test_slow_reader_holds_nobody_up(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads nothing, through small buffers: its request still ends, and others are served meanwhile."""
    host, port = live.url.removeprefix("http://").split(":")
    body = json.dumps({**LONG, "n": 4, "stream": True, "logprobs": 20}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    with socket.socket() as slow, live.client() as client:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect((host, int(port)))
        slow.sendall(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.2)
        for _ in range(3):
            assert client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 5}).status_code == 200
        settled(live)
        received = b""
        while part := slow.recv(65536):
            received += part
    assert received.count(b'"finish_reason":"length"') == 4
    assert b"data: [DONE]" in received
    assert len(received) > 200_000, "so little fits into the buffers of the system: the test shows nothing"


def test_full_queue_is_429(live: Live) -> None:
    def post(address: str) -> None:
        with live.client(transport=httpx.HTTPTransport(local_address=address)) as client:
            statuses.append(client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1}).status_code)

    statuses: list[int] = []
    addresses = ["127.0.0.2"] * share_of(SIZES["max_queue"]) + ["127.0.0.3"] * (SIZES["max_queue"] // 4)
    threads = [threading.Thread(target=post, args=(address,)) for address in addresses]
    with live.engine.paused(), live.client() as client:
        for thread in threads:
            thread.start()
        await_waiting(live, SIZES["max_queue"])
        answer = client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert error_of(answer)["type"] == "rate_limit_error"
        refused = client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 400})
        assert refused.status_code == 400, "what cannot fit is refused before it would queue"
    for thread in threads:
        thread.join()
    assert statuses == [200] * SIZES["max_queue"]


def test_one_client_leaves_a_part_of_the_queue_to_others(live: Live) -> None:
    """Neither many requests nor one with many prompts."""

    def post(address: str, prompts: int) -> None:
        asked = {"prompt": ["a"] * prompts, "max_tokens": 1}
        with live.client(transport=httpx.HTTPTransport(local_address=address)) as client:
            answers.append((address, client.post(COMPLETIONS, json=asked).status_code))

    answers: list[tuple[str, int]] = []
    threads = [
        threading.Thread(target=post, args=asked)
        for asked in (("127.0.0.2", 5), ("127.0.0.2", 1), ("127.0.0.3", 1), ("127.0.0.4", 1))
    ]
    with live.engine.paused():
        for at, thread in enumerate(threads):
            thread.start()
            await_waiting(live, 5 + at)
        post("127.0.0.2", 1)
        assert answers == [("127.0.0.2", 429)]
        with live.client() as client:
            refused = client.post(COMPLETIONS, json={"prompt": ["a"] * 7, "max_tokens": 1})
        assert refused.status_code == 400
        says(error_of(refused)["message"], "7 prompts", "6")
    for thread in threads:
        thread.join()
    assert [status for _, status in answers[1:]] == [200] * 4


def test_api_key(model: "moejax.Model") -> None:
    with running(model, api_key="secret-key", **SIZES) as live, live.client() as client:
        assert client.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/v1/moejax/info", "/openapi.json", "/nothing"):
            for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret-key"}):
                answer = client.get(path, headers=given)
                assert answer.status_code == 401
                assert error_of(answer)["code"] == "invalid_api_key"
        right = {"authorization": "bearer secret-key"}
        assert client.get("/v1/models", headers=right).status_code == 200
        assert client.get("/v1/moejax/info", headers=right).json()["api_key_required"] is True
        assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 401


def test_engine_that_dies(model: "moejax.Model", monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is told, in a stream and outside of one; health and all later requests say 503."""
    with running(model, **SIZES) as live, live.client() as client:
        health = client.get("/health").json()
        assert health["status"] == "ready" and health["programs"]["ready"] == health["programs"]["of"] > 2
        wait, calls = Scheduler.wait, itertools.count()

        def fail_later(*arguments: Any) -> Any:
            if next(calls):
                raise MemoryError("out of device memory")
            return wait(*arguments)

        monkeypatch.setattr(Scheduler, "wait", fail_later)
        with client.stream("POST", COMPLETIONS, json={**LONG, "stream": True}) as answer:
            *_, last = (line for line in answer.iter_lines() if line)
        says(json.loads(last.removeprefix("data: "))["error"]["message"], "MemoryError")
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "dead")
        says(health.json()["message"], "failed", "start the server")
        later = client.post(COMPLETIONS, json={"prompt": "a"})
        assert later.status_code == 503
        assert error_of(later)["type"] == "service_unavailable_error"
        assert client.get("/metrics").status_code == 200
