"""How `moejax bench compare` shows what it found."""

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

    from moejax.bench.report_tables import STRATEGIES_HEADER, strategies_rows

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

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("test", no_wrap=True)
    table.add_column("system", no_wrap=True)
    for name in ("tok/s", "min to max", "moejax / system"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("tokens", no_wrap=True)
    for work in compared["works"]:
        batch, before, after = (work[key] for key in ("batch_size", "input_len", "output_len"))
        for part, test in (("prefill", f"b{batch} pp{before}"), ("decode", f"b{batch} tg{after} @ d{before}")):
            for one in work["results"]:
                if part in one:
                    row = cells(one[part], one["contender"])
                    table.add_row(test, one["contender"], *row, TOLD[one["tokens"]])
    for one in (compared["throughput"] or {}).get("results", []):
        requests = f"{compared['throughput']['num_requests']} requests"
        table.add_row(requests, one["contender"], *cells(one, one["contender"]), TOLD[one["tokens"]])
    return table


def cells(samples: dict[str, Any], contender: str) -> tuple[str, ...]:
    """The median rate and its range, the median ratio and its range; no ratio for moejax itself."""
    from moejax.bench.samples import ratio_text

    rates, ratios = samples["tokens_per_second"], samples["ratios"]
    ratio = f"{ratio_text(samples['median_ratio'])} ({min(ratios):.2f} to {max(ratios):.2f})"
    return (
        f"{samples['median_tokens_per_second']:,.1f}",
        f"{min(rates):,.1f} to {max(rates):,.1f}",
        "" if contender == "moejax" else ratio,
    )
