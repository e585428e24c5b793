"""Clients that read nothing are given up; what uvicorn says of clients reads as a line for whoever runs the server."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import moejax
from moejax.serving.connection import Connection, log_to
from tests.messages import says
from tests.moejax.serving.conftest import SIZES
from tests.moejax.serving.live import WAIT_SECONDS, Live, running, settled


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
        one._write_seconds, one._on_stalled = 3600.0, lambda: given_up.append(None)
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
    head = "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)


def wait_for(condition: Any) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


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
