"""Bodies of requests: unpacked, counted, parsed and checked, large ones beside the event loop.

Whatever a client sends, it costs little: containers are counted before anything is built of them, lists are counted
before they are validated, and validation stops at the first thing that is wrong.
"""

import asyncio
import json
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from moejax.serving.engine import Engine
from moejax.serving.errors import ApiError, too_long
from moejax.serving.fair_queue import share_of
from moejax.serving.settings import AppSettings
from moejax.serving.wrong_fields import wrong_field

INLINE_BYTES = 64 << 10  # a larger body is parsed in a thread: it could take longer than others should wait
MAX_KEYS = 1024  # of an object whose keys are looked at
MAX_CONTAINERS = 50_000  # objects and lists of a body. 4 MiB hold 1.4 million, which take a second and 100 MB to build
_GZIP = ("gzip", "x-gzip")  # one and the same, in HTTP
_STRINGS = re.compile(
    rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL
)  # an unfinished one, too: else the search would be quadratic

Body = TypeVar("Body", bound=BaseModel)

# One thread: parsing holds Python's lock, so more would only make the event loop wait for several of them.
_parser = ThreadPoolExecutor(1, thread_name_prefix="moejax-bodies")


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The checked body of a request.

    Raises:
        ApiError: for what is no JSON of that form, naming the first field that is wrong.
        EngineError: when there is no model that could answer.
    """
    headers = request.headers
    if not _says_json(sent := headers.get("content-type", "")):
        got = f"got {sent[:80]!r}" if sent else "there is none"
        raise ApiError(400, f"send content-type: application/json ({got}); without it no body is read")
    packing = headers.get("content-encoding", "identity").strip().lower()
    if packing not in ("identity", *_GZIP):
        message = f"content-encoding {packing[:80]!r} is not supported: send gzip, or the body as it is"
        raise ApiError(415, message, headers={"Accept-Encoding": "gzip"})
    raw = await _received(request)
    engine: Engine = request.app.state.engine
    settings: AppSettings = request.app.state.settings
    counts = {"prompt": share_of(engine.settings.max_queue), "tokens": engine.model.max_seq_len}
    if packing == "identity" and len(raw) <= INLINE_BYTES:
        return parse(raw, kind, counts)
    limit = settings.max_request_bytes if packing in _GZIP else None
    return await asyncio.get_running_loop().run_in_executor(_parser, parse, raw, kind, counts, limit)


async def _received(request: Request) -> bytes:
    """All bytes of a body. The limit of their number is kept by `Guard`, which hands them out."""
    parts: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ApiError(499, "the client went away before it had sent the whole request")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def parse(raw: bytes, kind: type[Body], most: Mapping[str, int], gzip_limit: int | None = None) -> Body:
    """A body as an object of `kind`.

    Args:
        raw: its bytes.
        most: how many prompts, and how many tokens (or messages, which have one each at least), a request may have.
        gzip_limit: the body is packed, and may have so many bytes when it is not; None for one that is not packed.

    Raises:
        ApiError: for what is no such body.
    """
    value = _loads(raw if gzip_limit is None else _unpacked(raw, gzip_limit))
    if not isinstance(value, dict):
        raise ApiError(400, f"the body must be a JSON object (a dictionary), got a {type(value).__name__}")
    _check_counts(value, most)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise wrong_field(error, kind) from None  # the error holds the whole body


def _unpacked(raw: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # with the header of gzip
    try:
        plain = unpacker.decompress(raw, limit + 1)
    except zlib.error as error:
        raise ApiError(400, f"content-encoding says gzip, but the body is no gzip data: {error}") from error
    if len(plain) > limit:
        message = f"the unpacked request is larger than {limit} bytes (--max-request-bytes): shorten it"
        raise ApiError(413, message, code="request_too_large")
    if not unpacker.eof:
        raise ApiError(400, "content-encoding says gzip, but the body ends before its gzip data do")
    if rest := len(unpacker.unused_data):
        raise ApiError(400, f"the body has {rest} bytes behind its gzip data: pack it all in one")
    return plain


def _loads(raw: bytes) -> Any:
    """The value of JSON in UTF-8, if it does not consist of too many parts."""
    if raw.count(b"{") + raw.count(b"[") > MAX_CONTAINERS:  # also those in strings, which do not count
        structure = _STRINGS.sub(b"", raw)
        if (found := structure.count(b"{") + structure.count(b"[")) > MAX_CONTAINERS:
            raise ApiError(400, f"the body has {found:,} lists and objects, the most are {MAX_CONTAINERS:,}")
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise ApiError(400, f"the body is not UTF-8: byte 0x{byte:02x} at {error.start}; encode it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is no valid JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise ApiError(400, "the body is no valid JSON: it is nested too deeply") from error
    except ValueError as error:  # Python's limit for digits
        raise ApiError(400, f"the body is no valid JSON: {str(error).partition(';')[0]}") from error


def _check_counts(value: dict[str, Any], most: Mapping[str, int]) -> None:
    """Refuses lists and objects of more items than could be answered, before each is looked at."""
    messages = value.get("messages")
    for inner in (value, *value.values(), *(messages if isinstance(messages, list) else ())):
        if isinstance(inner, dict) and len(inner) > MAX_KEYS:
            raise ApiError(400, f"the body has an object of {len(inner):,} keys, the most are {MAX_KEYS:,}")
    for param in ("prompt", "tokens"):
        items = value.get(param)
        if not isinstance(items, list) or not items:
            continue
        if isinstance(items[0], int):
            _check_tokens(param, "tokens", items, most["tokens"])
        elif len(items) > most["prompt"]:
            raise ApiError(400, f"{len(items)} prompts in one request, the most are {most['prompt']}", param=param)
        for item in items[: most["prompt"]]:
            _check_tokens(param, "tokens", item, most["tokens"])
    if isinstance(messages, list):
        _check_tokens("messages", "messages", messages, most["tokens"])
        for message in messages:
            if isinstance(message, dict):
                _check_tokens("messages", "parts of a message", message.get("content"), most["tokens"])


def _check_tokens(param: str, what: str, items: Any, most: int) -> None:
    if isinstance(items, list) and len(items) > most:
        raise too_long(f"{len(items)} {what}", most, param=param)


def _says_json(content_type: str) -> bool:
    """Whether a body of this type is read as JSON."""
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))
