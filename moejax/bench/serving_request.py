"""One streamed request to an OpenAI-compatible server, timed chunk by chunk. Standard library only."""

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit


@dataclass(kw_only=True)
class Outcome:
    """What became of a request. Times are in seconds; those of a failed one say nothing.

    sent: when it was sent, on the clock of `time.perf_counter`.
    error: why it failed, None if it did not.
    ttft: until the first chunk.  itls: between each chunk and the next.  latency: until the last one.
    input_tokens, output_tokens: as the server counts them.
    """

    sent: float
    error: str | None = None
    ttft: float = 0.0
    itls: list[float] = field(default_factory=list)
    latency: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; None where there is only one."""
        return None if self.output_tokens < 2 else (self.latency - self.ttft) / (self.output_tokens - 1)


class Refused(Exception):
    """The server answered with an error, or with something that is no stream of completions."""


def split_url(base_url: str) -> SplitResult:
    """The parts of a server's address; a path in it goes in front of /v1, which it may end with, as OpenAI's clients
    are given it.

    Raises:
        ValueError: for anything but http:// or https:// and a host.
    """
    parts = urlsplit(base_url)
    try:
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # what `port` raises for one that is no number
        valid = False
    if not valid:
        raise ValueError(f"base_url must be an address like http://127.0.0.1:8000, got {base_url!r}")
    return parts._replace(path=parts.path.rstrip("/").removesuffix("/v1"))


def get_json(url: SplitResult, path: str, headers: Mapping[str, str], timeout: float) -> Any:
    """What `GET path` answers.

    Raises:
        Refused, OSError, http.client.HTTPException: when there is no such answer.
    """
    connection = _connect(url, timeout)
    try:
        connection.request("GET", url.path + path, headers=dict(headers))
        return json.loads(_accepted(connection.getresponse()).read())
    except ValueError as error:
        raise Refused(f"GET {path} answered no JSON: {error}") from error
    finally:
        connection.close()


def complete(url: SplitResult, body: Mapping[str, Any], headers: Mapping[str, str], timeout: float) -> Outcome:
    """Sends one completion request and reads its stream to the end. Failures are part of the outcome.

    timeout: seconds that the server may be silent.
    """
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    connection = _connect(url, timeout)
    outcome = Outcome(sent=time.perf_counter())
    try:
        content = {"Content-Type": "application/json", **headers}
        connection.request("POST", url.path + "/v1/completions", json.dumps(asked), content)
        _time_chunks(_events(_accepted(connection.getresponse())), outcome)
    except (Refused, OSError, http.client.HTTPException) as error:
        outcome.error = str(error) or type(error).__name__
    finally:
        connection.close()
    return outcome


def _time_chunks(chunks: Iterator[dict[str, Any]], outcome: Outcome) -> None:
    latest, chunks_seen = outcome.sent, 0
    for chunk in chunks:
        if "error" in chunk:
            raise Refused(f"error in the stream: {_message(chunk)}")
        if chunk.get("choices"):
            now = time.perf_counter()
            if chunks_seen == 0:
                outcome.ttft = now - outcome.sent
            else:
                outcome.itls.append(now - latest)
            latest, chunks_seen = now, chunks_seen + 1
        if usage := chunk.get("usage"):
            outcome.input_tokens, outcome.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    if chunks_seen == 0:
        raise Refused("the stream brought no token")
    if outcome.output_tokens == 0:
        raise Refused("the server did not count its tokens: it ignores stream_options.include_usage")
    outcome.latency = latest - outcome.sent


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event, until [DONE]."""
    for line in response:
        if not line.startswith(b"data:"):
            continue
        data = line[len(b"data:") :].strip()
        if data == b"[DONE]":
            return
        try:
            yield json.loads(data)
        except ValueError as error:
            raise Refused(f"the stream has an event that is no JSON: {data[:80]!r}") from error
    raise Refused("the stream ended before [DONE]")


def _connect(url: SplitResult, timeout: float) -> http.client.HTTPConnection:
    assert url.hostname is not None
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname, url.port, timeout=timeout)


def _accepted(response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    if response.status == 200:
        return response
    text = response.read(10_000).decode(errors="replace")
    try:
        reason = _message(json.loads(text))
    except (ValueError, TypeError, KeyError):
        reason = " ".join(text.split())[:200]
    raise Refused(f"HTTP {response.status}: {reason or response.reason}")


def _message(answer: Any) -> str:
    return str(answer["error"]["message"])
