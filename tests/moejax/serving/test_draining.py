"""While a server ends it says so, to new clients too, and what runs is answered whole."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import httpx
import pytest

import moejax
from tests.moejax.serving.conftest import SIZES
from tests.moejax.serving.live import WAIT_SECONDS, Live, running
from tests.moejax.serving.test_faults import error_of

ASKED = {"prompt": "a", "max_tokens": 300, "ignore_eos": True, "stream": True}


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_health_is_503_while_what_runs_comes_to_its_end(model: "moejax.Model") -> None:
    received: list[str] = []

    def read(live: Live) -> None:
        with live.client() as client, client.stream("POST", "/v1/completions", json=ASKED) as answer:
            received.extend(answer.iter_lines())

    said: list[str] = []
    with running(model, shutdown_seconds=WAIT_SECONDS, say=said.append, **SIZES) as live:
        with ExitStack() as held:
            while True:  # until a request is held before its end, which it may reach at once
                received.clear()
                thread = threading.Thread(target=read, args=(live,))
                thread.start()
                wait_for(lambda: any("text" in line for line in received))
                held.enter_context(live.engine.paused())
                if live.engine.metrics.now_running():
                    break
                held.close()
                thread.join(WAIT_SECONDS)
            assert httpx.get(f"{live.url}/health").status_code == 200
            live.server.should_exit = True
            wait_for(lambda: httpx.get(f"{live.url}/health").status_code == 503)
            answer = httpx.get(f"{live.url}/health")
            assert answer.json()["status"] == "draining"
            assert httpx.get(f"{live.url}/metrics").status_code == 200
            for path in ("/v1/completions", "/v1/models", "/tokenize"):
                refused = httpx.request(
                    "GET" if "models" in path else "POST", f"{live.url}{path}", json={"prompt": "a"}
                )
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                assert error_of(refused)["type"] == "service_unavailable_error"
        thread.join(WAIT_SECONDS)
        wait_for(lambda: not live.engine.alive)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{live.url}/health")
    assert received[-2] == "data: [DONE]"
    assert len(said) == 1
