"""`moejax bench`: a group of commands, one file each."""

import typer

from moejax.cli.bench_check import EXAMPLES as CHECK_EXAMPLES
from moejax.cli.bench_check import check
from moejax.cli.bench_compare import EXAMPLES as COMPARE_EXAMPLES
from moejax.cli.bench_compare import compare
from moejax.cli.bench_latency import EXAMPLES as LATENCY_EXAMPLES
from moejax.cli.bench_latency import latency
from moejax.cli.bench_serve import EXAMPLES as SERVE_EXAMPLES
from moejax.cli.bench_serve import serve
from moejax.cli.bench_throughput import EXAMPLES as THROUGHPUT_EXAMPLES
from moejax.cli.bench_throughput import throughput
from moejax.cli.help import SETTINGS, Command, examples

EXAMPLES = (COMPARE_EXAMPLES[0], LATENCY_EXAMPLES[0], THROUGHPUT_EXAMPLES[0], SERVE_EXAMPLES[0], CHECK_EXAMPLES[0])

bench = typer.Typer(
    name="bench",
    rich_markup_mode=None,
    context_settings=SETTINGS,
    epilog=examples(*EXAMPLES),
    add_completion=False,
)
for _function, _line, _examples in (
    (latency, "Time one batch at a time: prefill and decoding.", LATENCY_EXAMPLES),
    (throughput, "Time many ragged requests.", THROUGHPUT_EXAMPLES),
    (compare, "Compare speed with other systems.", COMPARE_EXAMPLES),
    (serve, "Measure a running server under load.", SERVE_EXAMPLES),
    (check, "Compare with a baseline: counts exactly, times within a tolerance.", CHECK_EXAMPLES),
):
    bench.command(cls=Command, short_help=_line, epilog=examples(*_examples), context_settings=SETTINGS)(_function)


@bench.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """Measure speed. Compilation is left out of every time and shown apart."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
