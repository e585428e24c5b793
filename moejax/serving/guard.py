"""What every request has to pass before its route: the host that it is for, the API key, and the limit of its size."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from moejax.serving.errors import ApiError
from moejax.serving.hosts import AllowedHosts
from moejax.serving.settings import AppSettings

MAX_DISCARDED = 64 << 20

App = Callable[[Any, Any, Any], Awaitable[None]]


def is_public(path: str) -> bool:
    """Whether a path needs no API key: the page's static files, and the health of the server."""
    return path in ("/", "/health", "/favicon.ico") or path.startswith("/page/")


class HostGuard:
    """ASGI middleware: lets in what is meant for this server, and makes HEAD a GET, whose body uvicorn keeps back."""

    def __init__(self, app: App, hosts: AllowedHosts) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host")  # h11 refuses two
        try:
            if host is not None:  # HTTP/1.0 has none, and no browser speaks it
                self._hosts.check(host.decode("latin-1"))
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app({**scope, "method": "GET"} if scope["method"] == "HEAD" else scope, receive, send)


class Guard:
    """ASGI middleware, plain: a framework's would hide from routes that a client went away."""

    def __init__(self, app: App, settings: AppSettings) -> None:
        self._app, self._limit = app, settings.max_request_bytes
        self._too_large = f"the request is larger than {self._limit} bytes (--max-request-bytes): shorten it"
        self._digest = None if settings.api_key is None else _digest(settings.api_key.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not is_public(scope["path"]) and not self._may_enter(headers.get(b"authorization", b"")):
            message = "wrong or missing API key: send the header Authorization: Bearer KEY"
            await ApiError(401, message, code="invalid_api_key").response()(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limit:
            await _discard(receive)
            await ApiError(413, self._too_large, code="request_too_large").response()(scope, receive, send)
            return
        size = 0

        async def counted() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._limit:
                raise ApiError(413, self._too_large, code="request_too_large")
            return message

        await self._app(scope, counted, send)

    def _may_enter(self, authorization: bytes) -> bool:
        if self._digest is None:
            return True
        scheme, _, key = authorization.partition(b" ")
        # Of digests, so that neither contents nor length show in the time that it takes.
        return hmac.compare_digest(_digest(key.strip()), self._digest) and scheme.lower() == b"bearer"


async def _discard(receive: Any) -> None:
    """Reads a body up to MAX_DISCARDED bytes: many clients only read the answer when they have sent everything."""
    size = 0
    while size <= MAX_DISCARDED:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
