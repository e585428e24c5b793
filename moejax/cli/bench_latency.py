"""`moejax bench latency`: prefill and decoding of one batch at a time."""

import json as json_format
from typing import TYPE_CHECKING, Any

from moejax.cli import bench_options as flags
from moejax.cli import console, options, startup
from moejax.cli import devices as device_flags

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
    from moejax.bench.source import resolve_source, source_name
    from moejax.bench.works import cross_product

    source = resolve_source(checkpoint, random)
    works = cross_product(batch_size, input_len, output_len)
    check_length(source, max(work.input_len + work.output_len for work in works))
    if report is not None:
        from moejax.bench.plots import check_plots

        check_plots()
    startup.prepare_jax(compile_cache=not no_compile_cache, quiet=quiet)
    import moejax
    from moejax.bench.latency import check_rounds, measure_latency
    from moejax.bench.machine import describe_run
    from moejax.bench.roofline import measure_roofline
    from moejax.planning.auto import AUTO
    from sharding import mesh_config

    check_rounds(num_iters_warmup, num_iters)
    if mesh != AUTO:  # which is a mesh of the devices that are here
        check_real(mesh_config(mesh).size)
    with console.progress(f"loading {source_name(source)}", quiet=quiet):
        model = moejax.load(
            source, mesh=mesh, dtype=dtype, expert_backend=expert_backend, dispatch=dispatch, seed=model_seed
        )
    check_real(model.mesh.size)
    with console.progress("measuring what this machine can do", quiet=quiet):
        roofline = measure_roofline(model.dtype)
    measured = []
    with console.progress("timing", quiet=quiet):
        for one in measure_latency(model, works, roofline, warmup=num_iters_warmup, rounds=num_iters):
            measured.append(one.as_json())
    result = {
        **describe_run(),
        "model": describe_model(model, source_name(source)),
        "roofline": vars(roofline) | {"bandwidth": roofline.bandwidth},
        "latency": measured,
    }
    if report is not None:
        from moejax.bench.report import write_report

        write_report(report, result)
        console.remark(f"report written to {report}")
    if json:
        console.write(f"{json_format.dumps(result)}\n")
    else:
        console.write(f"{headline(result)}\n")
        console.write_rendered(_table(measured))


def check_length(source: str, longest: int) -> None:
    """Raises ValueError before JAX starts when the model has no positions for this many tokens, or does not exist."""
    from moejax.cli.facts import read_facts

    limit = read_facts(source, None).max_seq_len
    if longest > limit:
        raise ValueError(
            f"prompt and output of {longest} tokens are more than the model's {limit} positions: lower --input-len or "
            "--output-len"
        )


def check_real(devices: int) -> None:
    """Raises ValueError for simulated devices: they share this machine's cores, so their times say nothing."""
    import jax

    if devices > 1 and jax.devices()[0].platform == "cpu":
        raise ValueError(
            "CPU devices of a mesh are simulated and not timed; moejax bench compare --mesh counts what they exchange"
        )


def describe_model(model: Any, name: str) -> dict[str, Any]:
    """What stands beside every number of a model."""
    return {
        "name": name,
        "parameters": model.config.num_parameters,
        "active_parameters": model.config.num_active_parameters,
        "dtype": model.dtype,
        "expert_backend": model.expert_backend,
        "mesh": str(model.mesh),
        "dispatch": model.dispatch,
    }


def headline(result: dict[str, Any]) -> str:
    """The machine, the model and what the machine can do, in three lines."""
    from moejax.bench.machine import machine_line

    model, roofline = result["model"], result.get("roofline")
    lines = [
        f"machine: {machine_line(result['machine'])}",
        f"model: {model['name']}, {model['parameters'] / 1e6:,.0f} M parameters ({model['dtype']}, experts "
        f"{model['expert_backend']}, {model['mesh']})",
    ]
    if roofline:
        lines.append(
            f"measured: copy {roofline['copy_bytes_per_second'] / 1e9:.1f} GB/s, read "
            f"{roofline['read_bytes_per_second'] / 1e9:.1f} GB/s, products "
            f"{roofline['matrix_flops_per_second'] / 1e9:,.0f} GFLOP/s"
        )
    return "\n".join(lines)


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
