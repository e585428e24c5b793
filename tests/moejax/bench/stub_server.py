"""A server that answers completions as it is told, to measure the load generator against what is known."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DONE = "data: [DONE]"
Say = Callable[[str], None]  # writes one line of the stream


@dataclass
class Stub:
    """Where it listens, what it was asked, and the most requests that it had at a time.

    health: how often /health was asked for.
    """

    base_url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    most: int = 0
    health: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        yield
        with self._lock:
            self._now -= 1


def event(**chunk: Any) -> str:
    return f"data: {json.dumps(chunk)}"


def token() -> str:
    return event(choices=[{"index": 0, "text": "x"}])


def usage(body: dict[str, Any]) -> str:
    tokens = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
    return event(choices=[], usage=tokens)


def steady(first: float, gap: float) -> Callable[[dict[str, Any], Say], None]:
    """Streams max_tokens tokens: the first after `first` seconds, the others `gap` seconds apart."""

    def answer(body: dict[str, Any], say: Say) -> None:
        for place in range(body["max_tokens"]):
            time.sleep(gap if place else first)
            say(token())
        say(usage(body))
        say(DONE)

    return answer


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may leave once it has read [DONE], before the end of the body is written: no fault of either."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(
    answer: Callable[[dict[str, Any], Say], None], *, status: int = 200, text: str = "", health: Sequence[str] = ()
) -> Iterator[Stub]:
    """A server on a free port of the loopback; with another `status` it answers `text` to every completion.

    health: what GET /health answers, one after the other, the last of them for ever; nothing is 404.
    """
    told = list(health)
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path != "/health":
                return self._whole(200, json.dumps({"data": [{"id": "stub"}]}))
            stub.health += 1
            self._whole(200 if told else 404, (told.pop(0) if len(told) > 1 else told[0]) if told else "")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.arrivals.append(time.perf_counter())
            stub.bodies.append(body)
            stub.headers.append(dict(self.headers))
            if status != 200:
                return self._whole(status, text)
            with ExitStack() as self.running:
                self.running.enter_context(stub.counted())
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                answer(body, self._say)
            self.wfile.write(b"0\r\n\r\n")

        def _say(self, line: str) -> None:
            if line == DONE:  # once it has read this the client may send its next request, before we run again
                self.running.close()
            data = f"{line}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        def _whole(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    stub.base_url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
