"""`moejax bench latency`: prefill and decoding of one batch at a time."""

from typing import TYPE_CHECKING, Any

from moejax.cli import bench_options as flags
from moejax.cli import console, options, startup
from moejax.cli import devices as device_flags
from moejax.cli.bench_runs import describe_model, load_timed, works_of, write_result

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = (
    "moejax bench latency path/to/checkpoint -b 1,8,16 -p 512 -n 128",
    "moejax bench latency --random 186m --json",
    "moejax bench latency --random mixtral-8x7b --mesh tensor=8 --report results",
)


def latency(
    checkpoint: flags.Checkpoint = None,
    random: flags.Random = None,
    batch_size: flags.BatchSizes = flags.BATCH_SIZES,
    input_len: flags.InputLens = flags.INPUT_LENS,
    output_len: flags.OutputLens = flags.OUTPUT_LENS,
    prefill_len: flags.PrefillLens = flags.NO_NUMBERS,
    num_iters: flags.Rounds = 5,
    num_iters_warmup: flags.Warmup = 1,
    json: flags.Json = False,
    report: flags.Report = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
    dtype: options.Dtype = "bfloat16",
    expert_backend: options.ExpertBackend = "auto",
    model_seed: flags.Seed = 0,
    no_compile_cache: options.NoCompileCache = False,
    mesh: device_flags.Mesh = None,
    dispatch: device_flags.Dispatch = "auto",
) -> None:
    """Time every combination of batch size, prompt length and output length. Real devices only."""
    from moejax.bench.source import resolve_source

    source = resolve_source(checkpoint, random)
    works = works_of(source, batch_size, input_len, output_len, prefill_len)
    if report is not None:
        from moejax.bench.report import check_report

        check_report(report)
    startup.prepare_jax(compile_cache=not no_compile_cache, quiet=quiet)
    from moejax.bench.latency import check_rounds, measure_latency
    from moejax.bench.machine import describe_run
    from moejax.bench.roofline import measure_roofline

    check_rounds(num_iters_warmup, num_iters)
    model = load_timed(
        source,
        mesh,
        dispatch,
        dtype=dtype,
        expert_backend=expert_backend,
        seed=model_seed,
        batch_size=max(work.batch_size for work in works),
        quiet=quiet,
    )
    with console.progress("measuring what this machine can do", quiet=quiet):
        roofline = measure_roofline(model.dtype)
    measured = []
    with console.progress("timing", quiet=quiet) as step:
        for one in measure_latency(model, works, roofline, warmup=num_iters_warmup, rounds=num_iters, on_round=step):
            measured.append(one.as_json())
    result = {
        **describe_run(),
        "model": describe_model(model, source),
        "roofline": vars(roofline) | {"bandwidth": roofline.bandwidth},
        "latency": measured,
    }
    if write_result(result, report, json=json):
        console.write_rendered(_table(measured))


def _table(measured: list[dict[str, Any]]) -> "Table":
    """As llama-bench prints: a row per test, tokens per second as mean and spread."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("batch", justify="right")
    table.add_column("test")
    for name in ("t/s", "ms", "p99 ms", "counted", "of peak", "compile s", "memory GB"):
        table.add_column(name, justify="right")
    for one in measured:
        compiled, memory = f"{one['compile_seconds']:.1f}", f"{one['peak_memory_bytes'] / 1e9:.2f}"
        flops = f"{one['counted']['prefill_flops'] / 1e9:,.1f} GFLOP"
        name = f"pp{one['input_len']}"
        table.add_row(
            str(one["batch_size"]), name, *_cells(one["prefill"], 1), flops, f"MFU {one['mfu']:.0%}", compiled, memory
        )
        if one["decode"] is not None:
            step = f"{one['counted']['decode_step']['bytes'] / 1e6:,.0f} MB/step"
            name = f"tg{one['output_len']} @ d{one['input_len']}"
            cells = _cells(one["decode"], one["output_len"] - 1)
            table.add_row(str(one["batch_size"]), name, *cells, step, f"MBU {one['mbu']:.0%}", "", "")
    return table


def _cells(summary: dict[str, Any], steps: int) -> tuple[str, str, str]:
    """Tokens per second, and milliseconds of the prefill or of one decode step."""
    percentiles = summary["percentiles"]
    return (
        f"{summary['tokens_per_second']:,.1f} ± {summary['stdev']:,.1f}",
        f"{1e3 * percentiles['50'] / steps:,.2f}",
        f"{1e3 * percentiles['99'] / steps:,.2f}",
    )
