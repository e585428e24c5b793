"""Clients that read or send nothing are given up, too many are refused; what is said of clients reads as a line."""

import asyncio
import contextlib
import json
import logging
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import moejax
from moejax.serving.client_log import log_to
from moejax.serving.connection import Connection, ConnectionRules
from moejax.serving.descriptors import RESERVED, connection_limit
from tests.messages import refuses, says
from tests.moejax.serving.conftest import SIZES
from tests.moejax.serving.live import WAIT_SECONDS, Live, running, settled

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


class Transport:
    """Holds `left` bytes that its client has not read."""

    def __init__(self, left: int) -> None:
        self.left, self.aborted = left, False

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.aborted = True


def test_a_client_that_reads_something_is_waited_for() -> None:
    """The clock is turned by hand: `_check` is what the timer calls."""
    given_up: list[None] = []

    async def main() -> None:
        one: Any = Connection.__new__(Connection)
        one.loop, one.transport, one._watch = asyncio.get_running_loop(), Transport(100), None
        one._rules = ConnectionRules(
            write_seconds=3600.0,
            idle_seconds=3600.0,
            most=1,
            on_stalled=lambda: given_up.append(None),
            on_full=lambda made_room: None,
        )
        one._expect_less_than(100)
        for left in (99, 40, 1):
            one.transport.left = left
            one._check(left + 1)
            assert one._watch is not None and not one.transport.aborted
        one._check(1)
        assert one.transport.aborted and given_up == [None]
        one._stop_watching()

    asyncio.run(main())


def test_a_client_that_reads_nothing_is_given_up(model: "moejax.Model") -> None:
    body = {"prompt": "a", "max_tokens": 300, "ignore_eos": True, "n": 4, "stream": True, "logprobs": 20}
    with running(model, write_seconds=0.2, send_buffer=4096, **SIZES) as live, socket.socket() as client:
        post(live, client, json.dumps(body).encode())
        wait_for(lambda: live.metric("moejax:stalled_clients_total") == 1)
        settled(live)
        received = b""
        while part := client.recv(1 << 16):
            received += part
        assert received.startswith(b"HTTP/1.1 200") and b"[DONE]" not in received
        with live.client() as other:
            assert other.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


def post(live: Live, client: socket.socket, body: bytes) -> None:
    """Sends a request through a connection that takes little at a time, and reads nothing."""
    host, port = live.url.removeprefix("http://").split(":")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect((host, int(port)))
    client.sendall(HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body)


def wait_for(condition: Any) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def connect(live: Live) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_SECONDS)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /health HT", HEAD + b"content-length: 9\r\n\r\n{"],
    ids=["nothing", "half a line", "half a body"],
)
def test_a_client_that_sends_nothing_more_is_given_up(
    model: "moejax.Model", sent: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(model, idle_seconds=0.2, **SIZES) as live, connect(live) as client:
        client.sendall(sent)
        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            pass
        with live.client() as other:  # while it is answered, nobody is idle
            asked = {"prompt": "a", "max_tokens": 300, "ignore_eos": True}
            assert other.post("/v1/completions", json=asked).status_code == 200
    assert capsys.readouterr().err == ""


def test_new_connections_take_the_place_of_idle_ones(model: "moejax.Model") -> None:
    said: list[str] = []
    with running(model, max_connections=5, say=said.append, **SIZES) as live:
        idle = [connect(live) for _ in range(20)]
        for _ in range(3):
            assert httpx.get(f"{live.url}/health", timeout=WAIT_SECONDS).status_code == 200
        closed = 0
        for one in idle[:15]:
            try:
                closed += one.recv(1) == b""
            except ConnectionResetError:
                closed += 1
        assert closed == 15
        for one in idle:
            one.close()
    (line,) = said
    says(line, "5", "--max-connections", "idle")


def test_connections_that_are_busy_are_not_closed(model: "moejax.Model") -> None:
    """As many as there may be are being answered: one more is refused, in our words."""
    said: list[str] = []
    body = json.dumps({"prompt": "a", "max_tokens": 5}).encode()
    with running(model, max_connections=3, say=said.append, **SIZES) as live, contextlib.ExitStack() as stack:
        with live.engine.paused():
            busy = [stack.enter_context(connect(live)) for _ in range(3)]
            for one in busy:
                one.sendall(HEAD + f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            wait_for(lambda: live.metric("vllm:num_requests_waiting") == 3)
            answer = httpx.get(f"{live.url}/health", timeout=WAIT_SECONDS)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            says(answer.json()["error"]["message"], "--max-connections")
        for one in busy:
            assert one.recv(12) == b"HTTP/1.1 200"
    (line,) = said
    says(line, "3", "--max-connections", "refused")


def test_many_idle_connections_leave_the_log_short() -> None:
    """A process of few open files: where no connection can be accepted, that is said once, and others end it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.moejax.serving.few_descriptors"], capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout)
    assert facts["attempts"] > 1
    says(" ".join(facts["said"]), "cannot be accepted", "--max-connections")
    assert len(facts["said"]) == 1
    assert facts["status_after"] == 200
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("asked", "limits", "expected", "limit_after"),
    [
        (None, (4096, 4096), 1000, 4096),
        (None, (1024, 1024), 1024 - RESERVED, 1024),
        (None, (256, 4096), 1000, 1000 + RESERVED),
        (5000, (1024, 8192), 5000, 5000 + RESERVED),
        (10, (1024, 8192), 10, 1024),
    ],
)
def test_connections_stay_below_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, limits: tuple[int, int], expected: int, limit_after: int
) -> None:
    now = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda which: now[0])
    monkeypatch.setattr(resource, "setrlimit", lambda which, both: now.__setitem__(0, both))
    assert connection_limit(asked) == expected
    assert now[0][0] == limit_after


@pytest.mark.parametrize(("asked", "hard"), [(5000, 4096), (None, 100)])
def test_more_connections_than_open_files(monkeypatch: pytest.MonkeyPatch, asked: int | None, hard: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (hard, hard))
    with refuses(ValueError, "--max-connections", str((asked or 1000) + RESERVED), str(hard), "ulimit -n"):
        connection_limit(asked)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The lines that are said of clients, requests included."""
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "uvicorn.access")]
    before = [(one.level, one.propagate, one.handlers) for one in loggers]
    lines: list[str] = []
    log_to(lines.append, requests=True)
    yield lines
    for one, (level, propagate, handlers) in zip(loggers, before, strict=True):
        one.level, one.propagate, one.handlers = level, propagate, handlers


def test_lines_about_clients(logged: list[str], live: Live) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")  # how TLS begins
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    upgrade = {"connection": "Upgrade", "upgrade": "websocket"}
    assert httpx.get(f"{live.url}/v1/nothing", headers=upgrade).status_code == 404
    wait_for(lambda: len(logged) >= 3)
    says(logged[0], "HTTP", "https://")
    says(logged[1], "WebSocket", "HTTP/2", "HTTP/1.1")
    assert logged[2].endswith('- "GET /v1/nothing HTTP/1.1" 404')
    assert len(logged) == 3


def test_without_a_line_for_every_request(logged: list[str], live: Live) -> None:
    log_to(logged.append, requests=False)
    assert httpx.get(f"{live.url}/health").status_code == 200
    logging.getLogger("uvicorn.error").warning("of uvicorn")
    assert logged == ["of uvicorn"]
