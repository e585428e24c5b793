"""The end of the server, with answers or requests that never come to an end."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from moejax.serving.client_log import log_to
from moejax.serving.server import Server, open_socket
from moejax.serving.settings import ServerSettings
from tests.messages import says

WAIT_SECONDS = 60


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


async def endless() -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        await anyio.sleep_forever()

    return StreamingResponse(parts())


async def takes(body: dict[str, str]) -> None: ...


def fake_engine() -> Any:
    metrics = SimpleNamespace(now_running=lambda: 1, stalled_clients=SimpleNamespace(inc=lambda: None))
    return SimpleNamespace(status="ready", was_ready=True, drain=lambda seconds: None, metrics=metrics)


def test_an_end_at_once_leaves_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """What a second Ctrl-C does while an answer is streamed: all is cancelled, and nothing is told of it."""
    app = FastAPI(lifespan=lifespan)
    app.add_api_route("/", endless)
    said: list[str] = []
    log_to(said.append, requests=False)
    server = Server(app, fake_engine(), ServerSettings(), said.append)
    with open_socket("127.0.0.1", 0) as listening:
        running = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        running.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        with httpx.stream("GET", url, timeout=WAIT_SECONDS) as answer:
            assert next(answer.iter_bytes()) == b"first"
            server.should_exit = server.force_exit = True
            running.join(WAIT_SECONDS)
    assert not running.is_alive()
    assert len(said) <= 1  # where it had begun to wait for what runs, it said so
    for line in said:
        says(line, "1", "30 s", "Ctrl-C")
    assert capsys.readouterr().err == ""


def test_half_a_request_does_not_hold_up_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    app, arrived, said = FastAPI(lifespan=lifespan), threading.Event(), list[str]()
    app.add_api_route("/", takes, methods=["POST"])

    async def noticed(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            arrived.set()
        await app(scope, receive, send)

    log_to(said.append, requests=False)
    wrapped: Any = noticed
    server = Server(wrapped, fake_engine(), ServerSettings(shutdown_seconds=0), said.append)
    with open_socket("127.0.0.1", 0) as listening:
        running = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        running.start()
        with socket.create_connection(listening.getsockname(), timeout=WAIT_SECONDS) as client:
            client.sendall(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"model"')
            assert arrived.wait(WAIT_SECONDS)
            server.should_exit = True
            assert client.recv(1) == b""
            running.join(WAIT_SECONDS)
    assert not running.is_alive()
    says(said[-1], "cut off")
    assert capsys.readouterr().err == ""


def test_the_start_is_told_every_second_until_it_is_over() -> None:
    engine, told = fake_engine(), []
    server = Server(FastAPI(), engine, ServerSettings(), lambda line: None, told.append)
    for status in ("loading", "ready"):
        engine.status = status
        for counter in range(21):
            asyncio.run(server.on_tick(counter))
    assert told == [True, True, True, False]
