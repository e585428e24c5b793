"""A server of the page without a model: it says what a test tells it to, so that nothing of it is slow or by chance."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

from moejax.serving.errors import ApiError, json_response
from moejax.serving.event_stream import DONE, event
from moejax.serving.page_files import router
from tests.moejax.serving.page_browser import WAIT_SECONDS

FACTS: dict[str, Any] = {
    "model": "stub",
    "about": None,
    "num_layers": 2,
    "parameters": 3_900_000,
    "num_experts": 4,
    "experts_per_token": 2,
    "max_seq_len": 256,
    "max_batch": 1,
    "dtype": "float32",
    "platform": "cpu",
    "mesh": "data=1,expert=1,tensor=1",
    "has_chat": False,
    "baseline": {"name": "slowpoke", "available": True, "reason": "of the test"},
    "api_key_required": False,
}
RUNNING: dict[str, Any] = {"choices": [], "moejax": {"status": "running", "description": "slowpoke 1.0"}}


def tokens(
    count: int, seconds: float, *, experts: Sequence[Sequence[int]] = ((0, 1), (2, 3)), last: bool = False
) -> dict[str, Any]:
    """A chunk of `count` tokens, at `seconds` on the server's clock; `experts` per layer of each."""
    return {
        "choices": [{"text": "word " * count, "finish_reason": "length" if last else None}],
        "moejax": {
            "token_ids": [7] * count,
            "texts": ["word "] * count,
            "time": seconds,
            "routed_experts": [experts] * count,
        },
    }


@dataclass(kw_only=True, eq=False)
class Stub:
    """What it answers.

    facts, health: of `/v1/moejax/info` and `/health`.
    ours, baseline: the chunks that each streams; an ApiError is sent as a stream's error and ends it, None cuts it off,
        and what follows an Event waits for it.
    refusals: errors that the baseline's next requests get before there is a stream.
    """

    url: str
    facts: dict[str, Any] = field(default_factory=lambda: dict(FACTS))
    health: str = "ready"
    ours: list[Any] = field(default_factory=lambda: [tokens(1, 0.1), tokens(9, 0.5, last=True)])
    baseline: list[Any] = field(default_factory=lambda: [RUNNING, tokens(1, 0.2), tokens(9, 1.0, last=True)])
    refusals: list[ApiError] = field(default_factory=list)


def make_app(stub: Stub) -> FastAPI:
    """The application of a stub."""
    app = FastAPI()
    app.include_router(router)

    @app.get("/health")
    async def health() -> Response:
        return json_response({"status": stub.health}, status=200 if stub.health == "ready" else 503)

    @app.get("/v1/moejax/info")
    async def info() -> Response:
        if stub.health != "ready":
            return ApiError(503, f"it is {stub.health}").response()
        return json_response(stub.facts)

    @app.post("/v1/completions")
    async def ours() -> Response:
        return StreamingResponse(events(stub.ours), media_type="text/event-stream")

    @app.post("/v1/moejax/baseline/completions")
    async def baseline() -> Response:
        if stub.refusals:
            return stub.refusals.pop(0).response()
        return StreamingResponse(events(stub.baseline), media_type="text/event-stream")

    return app


async def events(chunks: Sequence[Any]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        if chunk is None:
            return
        if isinstance(chunk, threading.Event):
            assert await asyncio.to_thread(chunk.wait, WAIT_SECONDS)
            continue
        if isinstance(chunk, ApiError):
            yield event(chunk.body())
            return
        yield event(chunk)
    yield DONE


@contextmanager
def stubbed() -> Iterator[Stub]:
    """A stub on a free port of the loopback."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        stub = Stub(url=f"http://127.0.0.1:{listening.getsockname()[1]}")
        config = uvicorn.Config(make_app(stub), log_level="critical", loop="asyncio", http="h11", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server._serve([listening])), daemon=True)
        thread.start()
        try:
            yield stub
        finally:
            server.should_exit = True
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive(), "the stub does not end"
