"""`moejax serve`: an OpenAI-compatible server."""

import os
from typing import Annotated

import typer

from moejax.cli import console, options, startup
from moejax.cli import devices as device_flags

EXAMPLES = (
    "moejax serve demo",
    "moejax serve path/to/checkpoint --max-batch 32 --max-seq-len 8192 --api-key KEY --host 0.0.0.0",
    "moejax serve demo --mesh expert=4,tensor=2 --simulate-devices 8",
)

ENGINE, HTTP = "Engine", "HTTP"

# What visitors of the page have to know before they ask the bundled checkpoint for the weather.
ABOUT_DEMO = "It was trained on Python's documentation and writes nothing else."

Host = Annotated[str, typer.Option("--host", rich_help_panel=HTTP, metavar="ADDRESS", help="Address to listen on.")]
Port = Annotated[
    int,
    typer.Option("--port", rich_help_panel=HTTP, parser=options.whole_number, metavar="N", help="Port to listen on."),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="MOEJAX_API_KEY",
        rich_help_panel=HTTP,
        metavar="KEY",
        help="What clients have to present. Better in MOEJAX_API_KEY: other users see the command line.",
        show_default=False,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--served-model-name",
        rich_help_panel=HTTP,
        metavar="NAME",
        help="The model's name in the API; the last part of CHECKPOINT by default.",
        show_default=False,
    ),
]
MaxRequestBytes = Annotated[
    int,
    typer.Option(
        "--max-request-bytes",
        rich_help_panel=HTTP,
        parser=options.whole_number,
        metavar="N",
        help="Of a request's body.",
    ),
]
ShutdownSeconds = Annotated[
    float,
    typer.Option(
        "--shutdown-seconds",
        rich_help_panel=HTTP,
        parser=options.number,
        metavar="X",
        help="How long answers may go on after SIGTERM or Ctrl-C.",
    ),
]
WriteSeconds = Annotated[
    float,
    typer.Option(
        "--write-seconds",
        rich_help_panel=HTTP,
        parser=options.number,
        metavar="X",
        help="A client that reads nothing for so long is given up.",
    ),
]
LogRequests = Annotated[
    bool,
    typer.Option(
        "--log-requests", rich_help_panel=HTTP, help="A line on stderr for every request.", show_default=False
    ),
]
Baseline = Annotated[
    str,
    typer.Option(
        "--baseline",
        rich_help_panel=HTTP,
        metavar="NAME",
        help="What the page's race runs against: auto, transformers, plain (our own, unaccelerated) or none.",
    ),
]
MaxBatch = Annotated[
    int,
    typer.Option(
        "--max-batch",
        "--max-num-seqs",
        rich_help_panel=ENGINE,
        parser=options.whole_number,
        metavar="N",
        help="Sequences decoded at a time; more wait.",
    ),
]
MaxSeqLen = Annotated[
    int | None,
    typer.Option(
        "--max-seq-len",
        "--max-model-len",
        rich_help_panel=ENGINE,
        parser=options.whole_number,
        metavar="N",
        help="Limit for prompt and output together; memory is kept for it. The model's own, at most 4096, by default.",
        show_default=False,
    ),
]
MaxQueue = Annotated[
    int,
    typer.Option(
        "--max-queue",
        rich_help_panel=ENGINE,
        parser=options.whole_number,
        metavar="N",
        help="Requests that may wait; more are refused with 429.",
    ),
]
PrefillChunk = Annotated[
    int | None,
    typer.Option(
        "--prefill-chunk",
        rich_help_panel=ENGINE,
        parser=options.whole_number,
        metavar="N",
        help="Tokens of prompts fed between two calls of the decode loop. 128 on a CPU, 512 elsewhere.",
        show_default=False,
    ),
]


def serve(
    checkpoint: options.Checkpoint,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    served_model_name: ModelName = None,
    max_request_bytes: MaxRequestBytes = 4 << 20,
    baseline: Baseline = "auto",
    shutdown_seconds: ShutdownSeconds = 30,
    write_seconds: WriteSeconds = 60,
    log_requests: LogRequests = False,
    max_batch: MaxBatch = 16,
    max_seq_len: MaxSeqLen = None,
    max_queue: MaxQueue = 64,
    prefill_chunk: PrefillChunk = None,
    dtype: options.Dtype = "bfloat16",
    expert_backend: options.ExpertBackend = "auto",
    model_seed: options.ModelSeed = None,
    no_compile_cache: options.NoCompileCache = False,
    mesh: device_flags.Mesh = None,
    dispatch: device_flags.Dispatch = "auto",
    simulate_devices: device_flags.SimulateDevices = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Serve a checkpoint by OpenAI's API, with a web page to try it.

    When it says ready, open http://127.0.0.1:8000/ for the page. Remarks go to stderr.
    SIGTERM or Ctrl-C ends it cleanly.
    """
    if model_seed is not None and not checkpoint.startswith(options.RANDOM):
        raise ValueError(f"--model-seed is for {options.RANDOM}NAME, but {checkpoint} has weights of its own")
    if not 0 <= port < 65536:
        raise ValueError(f"--port must be from 0 to 65535 (0 takes a free one), got {port}")
    if mesh is None and dispatch != "auto":
        raise ValueError(f"--dispatch {dispatch} says how tokens travel on a mesh; add --mesh, as in --mesh expert=4")
    devices = device_flags.Devices(simulate_devices=simulate_devices)
    from moejax.serving.baseline import choose
    from moejax.serving.settings import DEFAULT_MAX_SEQ_LEN, AppSettings, EngineSettings, ServerSettings

    server_settings = ServerSettings(
        shutdown_seconds=shutdown_seconds, write_seconds=write_seconds, log_requests=log_requests
    )
    settings = AppSettings(
        model_name=checkpoint.rstrip("/").rpartition("/")[2] if served_model_name is None else served_model_name,
        api_key=api_key,
        max_request_bytes=max_request_bytes,
        baseline=choose(baseline, checkpoint),
        about=ABOUT_DEMO if checkpoint == "demo" else None,
    )
    chunk = 128 if prefill_chunk is None else prefill_chunk
    EngineSettings(max_batch=max_batch, max_queue=max_queue, prefill_chunk=chunk)  # tells mistakes before JAX starts
    from moejax.cli.facts import read_facts
    from moejax.planning.auto import asked_split, check_split

    facts = read_facts(checkpoint, max_seq_len)
    limit = min(facts.max_seq_len, DEFAULT_MAX_SEQ_LEN) if max_seq_len is None else max_seq_len
    check_split(facts.config, mesh, dispatch)
    startup.check_extra("serve", "fastapi", "uvicorn", "prometheus_client")
    from moejax.serving import server

    listening = server.open_socket(host, port)
    with console.progress("starting JAX", quiet=quiet):
        startup.prepare_jax(devices, compile_cache=not no_compile_cache, quiet=quiet)
    split = asked_split(
        facts.config, mesh, dispatch, dtype=dtype, stored=facts.dtype, max_seq_len=limit, batch_size=max_batch
    )
    import jax

    import moejax
    from moejax.serving.app import create_app
    from moejax.serving.engine import Engine
    from moejax.serving.metrics import Metrics

    if prefill_chunk is None and jax.default_backend() != "cpu":
        chunk = 512

    loaded: list[moejax.Model] = []

    def load() -> moejax.Model:
        if split.remark:
            say(split.remark)
        model = moejax.load(
            checkpoint,
            mesh=split.mesh,
            dtype=dtype,
            max_seq_len=limit,
            expert_backend=expert_backend,
            dispatch=split.dispatch,
            seed=model_seed or 0,
        )
        loaded.append(model)
        return model

    def say(line: str) -> None:
        step("")  # what a terminal shows of the start makes room
        if not quiet:
            console.remark(line)

    def on_loading(loading: bool) -> None:
        compiling = f"compiling, programs so far: {loaded[0].programs.compiled}" if loaded else f"loading {checkpoint}"
        step(compiling if loading else "")

    page = server.url(host, listening.getsockname()[1])
    engine = Engine(
        load,
        EngineSettings(max_batch=max_batch, max_queue=max_queue, prefill_chunk=chunk),
        Metrics(settings.model_name),
        say,
        page,
    )
    with console.progress(f"loading {checkpoint}", quiet=quiet) as step:
        say(f"loading {checkpoint} for {page}; /health there says 200 when it is ready")
        server.serve(create_app(engine, settings), engine, listening, server_settings, say, on_loading)
    if engine.alive:  # still loading, which nothing interrupts: a compilation would not survive Python's own end
        os._exit(0)
