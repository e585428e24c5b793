"""What a server is told when it starts. Imports no JAX."""

import os
import ssl
from dataclasses import dataclass

from moejax.runtime.buckets import MAX_SERVED_SEQUENCES
from moejax.serving.baseline import NO_BASELINE, Choice
from moejax.serving.hosts import AllowedHosts

DEFAULT_MAX_SEQ_LEN = 4096  # where the model allows more: a server allocates what it might need
DEFAULT_CONNECTIONS = 1000
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Sizes of the engine.

    max_batch: sequences that are decoded at a time.
    max_queue: requests that may wait for a slot; more are refused.
    prefill_chunk: most tokens of prompts that are fed between two calls of the decode loop, a power of two.

    Raises:
        ValueError: for a size out of range.
    """

    max_batch: int = 16
    max_queue: int = 64
    prefill_chunk: int = 128

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= MAX_SERVED_SEQUENCES:
            raise ValueError(f"--max-batch must be from 1 to {MAX_SERVED_SEQUENCES}, got {self.max_batch}")
        if self.max_queue < 1:
            raise ValueError(f"--max-queue must be at least 1, got {self.max_queue}")
        if not 16 <= self.prefill_chunk <= 8192 or self.prefill_chunk & (self.prefill_chunk - 1):
            raise ValueError(f"--prefill-chunk must be a power of two from 16 to 8192, got {self.prefill_chunk}")


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """What the HTTP side is told.

    model_name: the model's name in requests and answers.
    api_key: what clients have to present; None lets everybody in.
    max_request_bytes: of a request's body.
    hosts: what the header `Host` may name.
    origins: of pages elsewhere that may ask; "*" is all.
    baseline: what the page's race runs against.
    about: a sentence on the model, for visitors of the page.

    Raises:
        ValueError: for an empty name or key, or a size out of range.
    """

    model_name: str
    api_key: str | None = None
    max_request_bytes: int = 4 * MIB
    hosts: AllowedHosts = AllowedHosts()
    origins: tuple[str, ...] = ()
    baseline: Choice = NO_BASELINE
    about: str | None = None

    def __post_init__(self) -> None:
        if not self.model_name:
            raise ValueError("--served-model-name must not be empty")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ValueError("--api-key must be printable ASCII characters, at least one: it is sent in a header")
        if self.max_request_bytes < 1024:
            raise ValueError(f"--max-request-bytes must be at least 1024, got {self.max_request_bytes}")
        for origin in self.origins:
            scheme, _, host = origin.partition("://")
            if origin != "*" and not (scheme in ("http", "https") and host and "/" not in host):
                raise ValueError(f"--allowed-origins must be like https://example.com, or *, got {origin!r}")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """The files of a private key and its certificate.

    Raises:
        ValueError: where they cannot be read, or are no pair.
    """

    keyfile: str
    certfile: str

    def __post_init__(self) -> None:
        for path in (self.keyfile, self.certfile):
            if not os.path.isfile(path):
                raise ValueError(f"there is no file {path}; --ssl-keyfile and --ssl-certfile are files in PEM format")
        try:
            # Without a password: a server that is started by a machine can ask nobody for it.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certfile, self.keyfile, password="")
        except OSError as error:  # SSLError is one
            raise ValueError(
                f"{self.certfile} and {self.keyfile} are no certificate and its private key, in PEM format and without "
                f"a password ({error.strerror or error})"
            ) from error


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What the server that runs the application is told.

    shutdown_seconds: how long answers may go on once the end has begun.
    write_seconds: within which a client has to read something, as long as there is something for it.
    idle_seconds: within which one has to send something, as long as no answer to it is under way.
    max_connections: at a time.
    log_requests: whether there is a line for every request.
    tls: what HTTPS is served with; None is HTTP.

    Raises:
        ValueError: for a number out of range.
    """

    shutdown_seconds: float = 30.0
    write_seconds: float = 60.0
    idle_seconds: float = 60.0
    max_connections: int = DEFAULT_CONNECTIONS
    log_requests: bool = False
    tls: Tls | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.shutdown_seconds <= 86400:
            raise ValueError(f"--shutdown-seconds must be from 0 to 86400, got {self.shutdown_seconds}")
        if not 0 < self.write_seconds <= 86400:
            raise ValueError(f"--write-seconds must be more than 0 and at most 86400, got {self.write_seconds}")
        if not 0 < self.idle_seconds <= 86400:
            raise ValueError(f"--idle-seconds must be more than 0 and at most 86400, got {self.idle_seconds}")
        if self.max_connections < 1:
            raise ValueError(f"--max-connections must be at least 1, got {self.max_connections}")
