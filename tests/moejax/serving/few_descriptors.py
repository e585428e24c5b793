"""A server in a process of its own that runs out of descriptors; prints as JSON what it said and counted."""

import asyncio
import contextlib
import json
import resource
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI

from moejax.serving.client_log import log_to
from moejax.serving.server import Server, open_socket
from moejax.serving.settings import ServerSettings

ATTEMPTS, SECONDS = 2, 60.0  # to accept, that are waited for, and how long


async def fine() -> None: ...


def main() -> None:
    said: list[str] = []
    attempts: list[None] = []
    metrics = SimpleNamespace(now_running=lambda: 0, stalled_clients=SimpleNamespace(inc=lambda: None))
    engine: Any = SimpleNamespace(status="ready", was_ready=True, drain=lambda seconds: None, metrics=metrics)
    app = FastAPI()
    app.add_api_route("/", fine)
    log_to(said.append, requests=False)
    server = Server(app, engine, ServerSettings(shutdown_seconds=0), said.append)
    told = server._on_loop_error

    def counted(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        attempts.append(None)
        told(loop, context)

    server._on_loop_error = counted  # type: ignore[method-assign]
    with open_socket("127.0.0.1", 0) as listening, contextlib.ExitStack() as stack:
        address = listening.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        httpx.get(f"http://{address[0]}:{address[1]}/")
        stack.callback(thread.join)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        clients = [socket.create_connection(address) for _ in range(20)]
        time.sleep(0.2)
        used = max(one.fileno() for one in clients) + 30
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        with contextlib.suppress(OSError):
            while True:
                clients.append(socket.create_connection(address))
        until = time.monotonic() + SECONDS
        while len(attempts) < ATTEMPTS and time.monotonic() < until:
            time.sleep(0.05)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for one in clients:
            one.close()
        status = httpx.get(f"http://{address[0]}:{address[1]}/", timeout=60).status_code
        server.should_exit = True
    print(json.dumps({"said": said, "attempts": len(attempts), "status_after": status}))


if __name__ == "__main__":
    main()
