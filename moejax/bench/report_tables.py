"""The tables of a report, in Markdown that also reads as plain text. Imports no JAX."""

from collections.abc import Sequence
from typing import Any

from moejax.bench.samples import ratio_text

OURS = "moejax"
STRATEGIES_HEADER = (
    *("parallelism", "batch", "MB held", "MB read/step"),
    *("collectives/step", "kB sent/step", "MB sent/prefill"),
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * width if place == 0 else f"{'-' * (width - 1)}:") for place, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)]) + "\n"


def strategies_rows(strategies: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row per strategy and batch: its cells under `STRATEGIES_HEADER`."""
    return [
        (
            f"{row['strategy']}: {row['mesh']}, {row['dispatch']}",
            str(work["batch_size"]),
            f"{row['weight_bytes_per_device'] / 1e6:,.1f}",
            f"{work['decode_step']['weight_bytes_read'] / 1e6:,.1f}",
            str(work["decode_step"]["collectives"]),
            f"{work['decode_step']['wire_bytes_per_device'] / 1e3:,.1f}",
            f"{work['prefill']['wire_bytes_per_device'] / 1e6:,.2f}",
        )
        for row in strategies["rows"]
        for work in row["works"]
    ]


def strategies_table(strategies: dict[str, Any]) -> str:
    """Intra-expert, inter-expert and hybrid side by side; the heading says whether anything was timed."""
    return (
        f"Parallelism, {strategies['how']}, per device; read are weights, by the busiest device, expected where every "
        f"choice of experts is equally likely:\n\n{table(STRATEGIES_HEADER, strategies_rows(strategies))}\n"
    )


def compare_table(compared: dict[str, Any]) -> str:
    """A row per piece of work and system: rates, and how many times faster moejax was. Losses are in bold."""
    rows = []
    for work in compared["works"]:
        batch, before, after = (work[key] for key in ("batch_size", "input_len", "output_len"))
        for part, name in (
            ("prefill", f"pp{before}, batch {batch}"),
            ("decode", f"tg{after} @ d{before}, batch {batch}"),
        ):
            for one in work["results"]:
                if part in one:
                    rows.append((name, one["contender"], *_cells(one[part], one["contender"]), one["tokens"]))
    served = compared.get("throughput") or {"results": []}
    for one in served["results"]:
        name = f"{served['num_requests']} ragged requests"
        rows.append((name, one["contender"], *_cells(one, one["contender"]), one["tokens"]))
    header = ("work", "system", "tok/s, median", "min to max", "moejax / system, median", "min to max", "its tokens")
    return table(header, rows)


def _cells(samples: dict[str, Any], contender: str) -> tuple[str, str, str, str]:
    rates, ratios = samples["tokens_per_second"], samples["ratios"]
    measured = (f"{samples['median_tokens_per_second']:,.1f}", f"{min(rates):,.1f} to {max(rates):,.1f}")
    if contender == OURS:
        return (*measured, "", "")
    median = ratio_text(samples["median_ratio"])
    lost = samples["median_ratio"] < 1
    return (*measured, f"**{median}**" if lost else median, f"{min(ratios):.2f} to {max(ratios):.2f}")


def latency_table(measured: Sequence[dict[str, Any]]) -> str:
    """A row per test of `moejax bench latency`."""
    rows = []
    for one in measured:
        batch, memory = str(one["batch_size"]), f"{one['peak_memory_bytes'] / 1e9:.2f}"
        counted = one["counted"]
        rows.append(
            (
                f"pp{one['input_len']}",
                batch,
                *_rate(one["prefill"], 1),
                f"{counted['prefill_flops'] / 1e9:,.1f} GFLOP",
                f"MFU {one['mfu']:.0%}",
                f"{one['compile_seconds']:.1f}",
                memory,
            )
        )
        if one["decode"]:
            step = counted["decode_step"]
            rows.append(
                (
                    f"tg{one['output_len']} @ d{one['input_len']}",
                    batch,
                    *_rate(one["decode"], one["output_len"] - 1),
                    f"{step['bytes'] / 1e6:,.0f} MB, {step['flops'] / 1e9:,.2f} GFLOP/step",
                    f"MBU {one['mbu']:.0%}",
                    "",
                    memory,
                )
            )
    header = ("test", "batch", "tok/s", "ms, median", "counted", "of peak", "compile s", "memory GB")
    return table(header, rows)


def _rate(summary: dict[str, Any], steps: int) -> tuple[str, str]:
    rate = f"{summary['tokens_per_second']:,.1f} ± {summary['stdev']:,.1f}"
    return rate, f"{1e3 * summary['percentiles']['50'] / steps:,.2f}"
