"""`moejax bench latency`: prefill and decoding of one batch at a time."""

import json as json_format
from typing import TYPE_CHECKING, Annotated, Any

from moejax.cli import bench_options as flags
from moejax.cli import console, options, startup
from moejax.cli.bench_runs import describe_model, headline, works_of
from moejax.cli.groups import grouped

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = (
    "moejax bench latency path/to/checkpoint -b 1,8,16 -p 512 -n 128",
    "moejax bench latency --random 186m --json",
    "moejax bench latency --random mixtral-8x7b --mesh tensor=8 --json > result.json",
)


@grouped
def latency(
    source: flags.SourceFlags,
    work: flags.WorkFlags,
    model: options.ModelFlags,
    mesh: options.MeshFlags,
    num_iters: flags.Rounds = 5,
    num_iters_warmup: Annotated[
        int, options.whole("--num-iters-warmup", panel=flags.WORK, help="Rounds before them, which compile.")
    ] = 1,
    json: flags.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Time every combination of batch size, prompt length and output length. Real devices only."""
    from moejax.cli.facts import read_facts

    facts = read_facts(source.source(quiet=quiet), None)
    works = works_of(facts, work)
    startup.prepare_jax(compile_cache=not model.no_compile_cache, quiet=quiet)
    from moejax.bench.latency import check_rounds, measure_latency
    from moejax.bench.machine import describe_run
    from moejax.bench.roofline import Memory, measure_roofline
    from moejax.cli.load import load_model

    check_rounds(num_iters_warmup, num_iters)
    largest = max(work.batch_size for work in works)
    loaded = load_model(facts, mesh, model, batch_size=largest, timed=True, quiet=quiet)
    with console.progress("measuring what this machine can do", quiet=quiet):
        memory = Memory()
        roofline = measure_roofline(loaded.dtype, memory)
    measured = []
    with console.progress("timing", quiet=quiet) as step:
        for one in works:
            name = f"{one.prefill_name} {one.decode_name} b{one.batch_size}"
            found = measure_latency(
                loaded,
                one,
                roofline,
                memory,
                warmup=num_iters_warmup,
                rounds=num_iters,
                on_round=lambda what, name=name: step(f"{name}: {what}"),
            )
            measured.append(found)
    result = {
        **describe_run(),
        "model": describe_model(loaded, facts.name),
        "roofline": vars(roofline),
        "latency": measured,
    }
    if json:
        console.write(f"{json_format.dumps(result)}\n")
        return
    console.write(f"{headline(result)}\n")
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
