"""How `moejax bench compare` shows what it found."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moejax.cli import console

if TYPE_CHECKING:
    from rich.table import Table

# Verdicts, in a word each: rows have to fit a terminal.
TOLD = {"same tokens": "same", "right up to rounding": "rounded", "WRONG": "WRONG"}


def show(result: dict[str, Any]) -> None:
    """Tables of rates and ratios, then what could not take part."""
    from moejax.bench.machine import machine_line

    compared, model = result.get("compare"), result["model"]
    console.write(f"machine: {machine_line(result['machine'])}\n")
    console.write(f"model: {model['name']}, {model['parameters'] / 1e6:,.0f} M parameters, {model['dtype']}\n")
    if strategies := result.get("strategies"):
        console.write(f"Parallelism, {strategies['how']}, per device; read: weights, by the busiest device, expected\n")
        console.write_rendered(_strategies(strategies))
    if compared is None:
        return
    console.write_rendered(_table(compared))
    for one in compared["contenders"]:
        apart = f"load {one['load_seconds']:.1f} s, compile and warm up {one['warmup_seconds']:.1f} s"
        failed = f" | FAILED: {one['failed']}" if one["failed"] else ""
        console.write(
            f"{console.printable(one['name'])}: {console.printable(one['how'] or 'did not load')} | {apart}{failed}\n"
        )
    for name, reason in compared["not_installed"].items():
        console.write(f"{name}: {reason}\n")


def _strategies(strategies: dict[str, Any]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from moejax.bench.strategies import STRATEGIES_HEADER, strategies_rows

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(STRATEGIES_HEADER[0])
    for name in STRATEGIES_HEADER[1:]:
        table.add_column(name.replace("/", "\n/"), justify="right", no_wrap=True)
    for row in strategies_rows(strategies):
        table.add_row(*row)
    return table


def _table(compared: dict[str, Any]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from moejax.bench.standings import measurements

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("test", no_wrap=True)
    table.add_column("system", no_wrap=True)
    for name in ("tok/s", "min to max", "moejax / system"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("tokens", no_wrap=True)
    for one in measurements(compared):
        if one.part == "throughput":
            test = f"{one.of['num_requests']} requests"
        else:
            tokens = f"tg{one.of['output_len']} @ d" if one.part == "decode" else "pp"
            test = f"b{one.of['batch_size']} {tokens}{one.of['input_len']}"
        table.add_row(test, one.contender, *cells(one.samples, one.contender), TOLD[one.tokens])
    return table


def cells(samples: Mapping[str, Any], contender: str) -> tuple[str, ...]:
    """The median rate and its range, the median ratio and its range; no ratio for moejax itself."""
    from moejax.bench.standings import OURS, ratio_text

    rates, ratios = samples["tokens_per_second"], samples["ratios"]
    ratio = f"{ratio_text(samples['median_ratio'])} ({min(ratios):.2f} to {max(ratios):.2f})"
    return (
        f"{samples['median_tokens_per_second']:,.1f}",
        f"{min(rates):,.1f} to {max(rates):,.1f}",
        "" if contender == OURS else ratio,
    )
