"""The tables of a report, in Markdown that also reads as plain text. Imports no JAX."""

from collections.abc import Mapping, Sequence
from typing import Any

from moejax.bench.standings import OURS, measurements, ratio_text
from moejax.bench.strategies import STRATEGIES_HEADER, strategies_rows


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


def strategies_table(strategies: dict[str, Any]) -> str:
    """Intra-expert, inter-expert and hybrid side by side; the heading says whether anything was timed."""
    return (
        f"Parallelism, {strategies['how']}, per device; read are weights, by the busiest device, expected where every "
        f"choice of experts is equally likely:\n\n{table(STRATEGIES_HEADER, strategies_rows(strategies))}\n"
    )


def compare_table(compared: dict[str, Any]) -> str:
    """A row per piece of work and system: rates, and how many times faster moejax was. Losses are in bold."""
    rows = []
    for one in measurements(compared):
        if one.part == "throughput":
            name = f"{one.of['num_requests']} ragged requests"
        else:
            test = f"pp{one.of['input_len']}" if one.part == "prefill" else decode_name(one.of)
            name = f"{test}, batch {one.of['batch_size']}"
        rows.append((name, one.contender, *_cells(one.samples, one.contender), one.tokens))
    header = ("work", "system", "tok/s, median", "min to max", "moejax / system, median", "min to max", "its tokens")
    return table(header, rows)


def _cells(samples: Mapping[str, Any], contender: str) -> tuple[str, str, str, str]:
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
                    decode_name(one),
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


def decode_name(work: Mapping[str, Any]) -> str:
    """As llama-bench calls it: tg128 @ d512 generates 128 tokens after 512."""
    return f"tg{work['output_len']} @ d{work['input_len']}"


def _rate(summary: dict[str, Any], steps: int) -> tuple[str, str]:
    rate = f"{summary['tokens_per_second']:,.1f} ± {summary['stdev']:,.1f}"
    return rate, f"{1e3 * summary['percentiles']['50'] / steps:,.2f}"
