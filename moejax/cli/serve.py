"""`moejax serve`: an OpenAI-compatible server."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from moejax.cli import console, options, startup
from moejax.cli.devices import Devices
from moejax.cli.groups import grouped
from moejax.cli.options import option, real, whole
from moejax.cli.sources import Revision, pinned, short_name
from moejax.families.table import RANDOM
from moejax.runtime.paths import user_path

if TYPE_CHECKING:
    from moejax import Model
    from moejax.cli.facts import SourceFacts
    from moejax.moe.split import Split
    from moejax.serving.settings import AppSettings, EngineSettings, ServerSettings, Tls

EXAMPLES = (
    "moejax serve demo",
    "moejax serve path/to/checkpoint --max-batch 32 --max-seq-len 8192 --api-key KEY --host 0.0.0.0",
    "moejax serve demo --mesh expert=4,tensor=2 --simulate-devices 8",
)

ENGINE, HTTP = "Engine", "HTTP"

ChatTemplate = Annotated[
    str | None,
    option(
        "--chat-template",
        panel=options.MODEL,
        metavar="FILE",
        help="A Jinja file in place of the checkpoint's own chat template.",
    ),
]

# What visitors of the page have to know before they ask the bundled checkpoint for the weather.
ABOUT_DEMO = "It was trained on Python's documentation and writes nothing else."


@dataclass(frozen=True, kw_only=True)
class HttpFlags:
    """Where the server listens, and what clients may do."""

    host: Annotated[str, option("--host", panel=HTTP, metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, whole("--port", panel=HTTP, help="Port to listen on.")] = 8000
    api_key: Annotated[
        str | None,
        option(
            "--api-key",
            envvar="MOEJAX_API_KEY",
            panel=HTTP,
            metavar="KEY",
            help="What clients have to present. Better in MOEJAX_API_KEY: other users see the command line.",
            show_default=False,
        ),
    ] = None
    served_model_name: Annotated[
        str | None,
        option(
            "--served-model-name",
            panel=HTTP,
            metavar="NAME",
            help="The model's name in the API; the last part of CHECKPOINT by default.",
            show_default=False,
        ),
    ] = None
    allowed_hosts: Annotated[
        list[str] | None,
        option(
            "--allowed-hosts",
            panel=HTTP,
            metavar="NAMES",
            help="Further names for the server, beside what it listens on; repeatable, or with commas. * is any.",
        ),
    ] = None
    allowed_origins: Annotated[
        list[str] | None,
        option(
            "--allowed-origins",
            panel=HTTP,
            metavar="URLS",
            help="Pages elsewhere that may ask (CORS), like https://example.com; repeatable, or with commas. * is any.",
        ),
    ] = None
    ssl_keyfile: Annotated[
        str | None, option("--ssl-keyfile", panel=HTTP, metavar="FILE", help="Private key (PEM), to serve HTTPS.")
    ] = None
    ssl_certfile: Annotated[
        str | None, option("--ssl-certfile", panel=HTTP, metavar="FILE", help="Its certificate (PEM), with the chain.")
    ] = None
    max_request_bytes: Annotated[int, whole("--max-request-bytes", panel=HTTP, help="Of a request's body.")] = 4 << 20
    baseline: Annotated[
        str,
        option(
            "--baseline",
            panel=HTTP,
            metavar="NAME",
            help="What the page's race runs against: auto, transformers, plain (our own, unaccelerated) or none.",
        ),
    ] = "auto"
    shutdown_seconds: Annotated[
        float, real("--shutdown-seconds", panel=HTTP, help="How long answers may go on after SIGTERM or Ctrl-C.")
    ] = 30
    write_seconds: Annotated[
        float, real("--write-seconds", panel=HTTP, help="A client that reads nothing for so long is given up.")
    ] = 60
    idle_seconds: Annotated[
        float, real("--idle-seconds", panel=HTTP, help="A client that is to send something and does not is given up.")
    ] = 60
    max_connections: Annotated[
        int | None,
        whole(
            "--max-connections",
            panel=HTTP,
            help="At a time; more close an idle one, or get 503. 1000, or what the limit of open files leaves.",
            show_default=False,
        ),
    ] = None
    log_requests: Annotated[
        bool, option("--log-requests", panel=HTTP, help="A line on stderr for every request.", show_default=False)
    ] = False

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"--port must be from 0 to 65535 (0 takes a free one), got {self.port}")

    def server_settings(self) -> "ServerSettings":
        """Raises ValueError for a number out of range."""
        from moejax.serving.descriptors import connection_limit
        from moejax.serving.settings import ServerSettings

        return ServerSettings(
            shutdown_seconds=self.shutdown_seconds,
            write_seconds=self.write_seconds,
            idle_seconds=self.idle_seconds,
            max_connections=connection_limit(self.max_connections),
            log_requests=self.log_requests,
            tls=self._tls(),
        )

    def _tls(self) -> "Tls | None":
        from moejax.serving.settings import Tls

        if self.ssl_keyfile is None and self.ssl_certfile is None:
            return None
        if self.ssl_keyfile is None or self.ssl_certfile is None:
            raise ValueError("--ssl-keyfile and --ssl-certfile go together: a private key, and its certificate")
        return Tls(keyfile=self.ssl_keyfile, certfile=self.ssl_certfile)

    def app_settings(self, checkpoint: str) -> "AppSettings":
        """Raises ValueError for a value out of range, or a baseline that cannot be."""
        from moejax.serving.baseline import choose
        from moejax.serving.hosts import allowed_hosts
        from moejax.serving.settings import AppSettings

        name = short_name(checkpoint) if self.served_model_name is None else self.served_model_name
        return AppSettings(
            model_name=name,
            api_key=self.api_key,
            max_request_bytes=self.max_request_bytes,
            hosts=allowed_hosts(self.host, _listed(self.allowed_hosts)),
            origins=tuple(_listed(self.allowed_origins)),
            baseline=choose(self.baseline, checkpoint),
            about=ABOUT_DEMO if checkpoint == "demo" else None,
        )


def _listed(values: list[str] | None) -> list[str]:
    """The items of a flag that may be repeated, and have several with commas between."""
    return [item.strip() for value in values or () for item in value.split(",")]


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """Sizes of the engine."""

    max_batch: Annotated[
        int, whole("--max-batch", "--max-num-seqs", panel=ENGINE, help="Sequences decoded at a time; more wait.")
    ] = 16
    max_seq_len: Annotated[
        int | None,
        whole(
            "--max-seq-len",
            "--max-model-len",
            panel=ENGINE,
            help="Limit for prompt and output together; memory is kept for it. The model's own, at most 4096, by "
            "default.",
            show_default=False,
        ),
    ] = None
    max_queue: Annotated[
        int, whole("--max-queue", panel=ENGINE, help="Requests that may wait; more are refused with 429.")
    ] = 64
    prefill_chunk: Annotated[
        int | None,
        whole(
            "--prefill-chunk",
            panel=ENGINE,
            help="Tokens of prompts fed between two calls of the decode loop. 128 on a CPU, 512 elsewhere.",
            show_default=False,
        ),
    ] = None

    def settings(self, platform: str) -> "EngineSettings":
        """Raises ValueError for a size out of range."""
        from moejax.serving.settings import EngineSettings

        chunk = (128 if platform == "cpu" else 512) if self.prefill_chunk is None else self.prefill_chunk
        return EngineSettings(max_batch=self.max_batch, max_queue=self.max_queue, prefill_chunk=chunk)


def _template(path: str | None, checkpoint: str) -> str | None:
    """The text of a chat template's file.

    Raises:
        ValueError: for one that cannot be read, or that is no template, and where there is no tokenizer for it.
    """
    if path is None:
        return None
    if checkpoint.startswith(RANDOM):
        raise ValueError(f"--chat-template is for a checkpoint with a tokenizer, which {checkpoint} has not")
    from moejax.text.chat import render_chat

    try:
        text = user_path(path, "--chat-template").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"--chat-template {path}: {reason}; give a file with a Jinja template") from error
    try:
        render_chat(text, [{"role": "user", "content": "Hello"}], named={})
    except ValueError as error:
        raise ValueError(f"--chat-template {path}: {error}") from error
    return text


@grouped
def serve(
    checkpoint: options.Checkpoint,
    http: HttpFlags,
    engine: EngineFlags,
    model: options.ModelFlags,
    mesh: options.MeshFlags,
    devices: Devices,
    revision: Revision = None,
    chat_template: ChatTemplate = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Serve a checkpoint by OpenAI's API, with a web page to try it.

    When it says ready, open http://127.0.0.1:8000/ for the page. Remarks go to stderr.
    SIGTERM or Ctrl-C ends it cleanly.
    """
    model.check(checkpoint)
    checkpoint = pinned(checkpoint, revision, quiet=quiet)
    server_settings, app_settings = http.server_settings(), http.app_settings(checkpoint)
    engine.settings("cpu")  # tells mistakes before JAX starts
    from moejax.cli.facts import read_facts
    from moejax.planning.auto import check_split
    from moejax.serving.settings import DEFAULT_MAX_SEQ_LEN

    facts = read_facts(checkpoint, engine.max_seq_len, _template(chat_template, checkpoint))
    limit = facts.max_seq_len if engine.max_seq_len else min(facts.max_seq_len, DEFAULT_MAX_SEQ_LEN)
    check_split(facts.config, mesh.mesh, mesh.dispatch)
    startup.check_extra("serve", "fastapi", "uvicorn", "prometheus_client")
    from moejax.serving import server

    listening = server.open_socket(http.host, http.port)
    with console.progress("starting JAX", quiet=quiet):
        startup.prepare_jax(devices, compile_cache=not model.no_compile_cache, quiet=quiet)
    split = mesh.split(facts, model.dtype, batch_size=engine.max_batch, max_seq_len=limit)
    import jax

    from moejax.serving.app import create_app
    from moejax.serving.engine import Engine
    from moejax.serving.metrics import Metrics

    loading = _Loading(facts, split, limit, model)

    def say(line: str) -> None:
        step("")  # what a terminal shows of the start makes room
        if not quiet:
            console.remark(line)

    def load() -> "Model":
        if split.remark:
            say(split.remark)
        return loading.load()

    page = server.url(http.host, listening.getsockname()[1], tls=server_settings.tls is not None)
    served = Engine(load, engine.settings(jax.default_backend()), Metrics(app_settings.model_name), say, page)
    with console.progress(f"loading {checkpoint}", quiet=quiet) as step:
        say(f"loading {checkpoint} for {page}; /health there says 200 when it is ready")
        app = create_app(served, app_settings)
        server.serve(
            app, served, listening, server_settings, say, lambda busy: step(loading.progress() if busy else "")
        )
    if served.alive:  # loading or compiling, which nothing interrupts: a compilation would not survive Python's own end
        os._exit(0)


class _Loading:
    """Loads the model in the engine's thread, and knows how far that is."""

    def __init__(self, facts: "SourceFacts", split: "Split", limit: int, flags: options.ModelFlags) -> None:
        self._facts, self._split, self._limit, self._flags = facts, split, limit, flags
        self._model: Model | None = None

    def load(self) -> "Model":
        from moejax.cli.load import load_split

        self._model = load_split(self._facts, self._split, self._flags, max_seq_len=self._limit)
        return self._model

    def progress(self) -> str:
        """What is being done."""
        if self._model is None:
            return f"loading {self._facts.name}"
        return f"compiling the first programs, so far: {self._model.programs.compiled}"
