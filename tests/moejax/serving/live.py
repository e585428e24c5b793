"""A server in this process: real sockets and real threads, and an engine that tests can look into."""

import asyncio
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import httpx

import moejax
from moejax.decoding.requests import make_requests
from moejax.decoding.scheduler import Scheduler
from moejax.decoding.sequences import SequenceGroup, make_sequences
from moejax.serving.app import create_app
from moejax.serving.engine import Engine
from moejax.serving.jobs import Mailbox, ServedRequest
from moejax.serving.metrics import Metrics
from moejax.serving.server import Server
from moejax.serving.server import url as address
from moejax.serving.settings import AppSettings, EngineSettings, ServerSettings, Tls

WAIT_SECONDS = 300  # for anything: nothing is compiled yet in a clean clone, and machines may be busy


@dataclasses.dataclass(kw_only=True, eq=False)
class Live:
    """A running server, its engine, and the model that it serves."""

    url: str
    engine: Engine
    model: "moejax.Model"
    server: Server

    def client(self, **settings: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT_SECONDS, **settings)  # type: ignore[arg-type]

    def metric(self, name: str, **labels: str) -> float:
        """The value of one metric; labels that are not given are the usual ones."""
        usual = {"model_name": "tiny", "engine": "0"}
        value = self.engine.metrics.registry.get_sample_value(name, {**usual, **labels})
        assert value is not None, name
        return value


def make_engine(model: "moejax.Model", **sizes: int) -> Engine:
    return Engine(lambda: model, EngineSettings(**sizes), Metrics("tiny"), lambda line: None)


def wait_until_ready(engine: Engine) -> None:
    """With all its programs."""
    until = time.monotonic() + WAIT_SECONDS
    while engine.status == "loading" or engine.status == "ready" and engine.programs[0] < engine.programs[1]:
        assert time.monotonic() < until, "the engine does not get ready"
        time.sleep(0.02)
    assert engine.status == "ready", engine.error


def scheduler_of(engine: Engine) -> Scheduler:
    """The scheduler of an engine that is ready."""
    assert engine._running is not None
    return engine._running.scheduler


@contextmanager
def running(
    model: "moejax.Model",
    *,
    api_key: str | None = None,
    limit: int = 1 << 20,
    origins: tuple[str, ...] = (),
    idle_seconds: float = WAIT_SECONDS,
    max_connections: int = 1000,
    shutdown_seconds: float = 0,
    say: Callable[[str], None] = lambda line: None,
    write_seconds: float = WAIT_SECONDS,
    send_buffer: int | None = None,
    tls: Tls | None = None,
    **sizes: int,
) -> Iterator[Live]:
    """A server on a free port of the loopback, ready. `send_buffer`: bytes that the system keeps for a connection."""
    engine = make_engine(model, **sizes)
    app_settings = AppSettings(model_name="tiny", api_key=api_key, max_request_bytes=limit, origins=origins)
    app = create_app(engine, app_settings)
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        if send_buffer is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # accepted connections inherit it
        settings = ServerSettings(
            shutdown_seconds=shutdown_seconds,
            write_seconds=write_seconds,
            idle_seconds=idle_seconds,
            max_connections=max_connections,
            tls=tls,
        )
        server = Server(app, engine, settings, say)
        thread = threading.Thread(target=lambda: asyncio.run(server._serve([listening])), daemon=True)
        thread.start()
        try:
            wait_until_ready(engine)
            url = address("127.0.0.1", listening.getsockname()[1], tls=tls is not None).rstrip("/")
            yield Live(url=url, engine=engine, model=model, server=server)
        finally:
            engine.drain(0)
            server.should_exit = True
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive(), "the server does not end"
            engine.stop()


def job(model: "moejax.Model", prompt: object, number: int, **params: object) -> ServedRequest:
    """A job with a mailbox of the running event loop."""
    (request,) = make_requests(model, [prompt], None, params)  # type: ignore[list-item]
    request = dataclasses.replace(request, index=number)
    group = SequenceGroup(request=request, sequences=make_sequences(model, request))
    return ServedRequest(group=group, mailbox=Mailbox())


async def finished(one: ServedRequest) -> ServedRequest:
    """The job, when the engine has told everything about it."""
    async for _ in one.mailbox:
        pass
    return one


def settled(live: Live, seconds: float = WAIT_SECONDS) -> None:
    """Waits until nobody has a slot and nobody waits."""
    until = time.monotonic() + seconds
    scheduler = scheduler_of(live.engine)
    # The metrics are of the last round: what came since is seen in the slots alone.
    while scheduler.running or any(live.metric(f"vllm:num_requests_{where}") for where in ("running", "waiting")):
        assert time.monotonic() < until, "some request never ends"
        time.sleep(0.01)
    assert scheduler.free == scheduler.slots.shapes.parts.batch, "a slot leaked"
