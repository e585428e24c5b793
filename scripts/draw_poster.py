"""Draws the poster of scripts/bench_page.py: architecture, strategies and results, from the JSON of benchmark reports.

The reports are those of `moejax bench compare --json`; each bar is the median of a report's rounds, and a bar that is
shorter than its neighbour's is drawn as short. Without a report of a kind its part of the page says so.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from moejax.bench.standings import ratio_text
from moejax.moe.split import DISPATCHES
from moejax.ops.table import BACKENDS
from scripts.draw_parallelism import FAINT, HELD, HOME, INK, PANEL, box, svg, text

WIDTH, MARGIN = 1180, 28
HALF = (WIDTH - 3 * MARGIN) // 2
LAYERS = (
    ("serving, command line", "requests in, tokens out: moejax.decode, moejax decode"),
    ("decoding", "prefill, then one compiled loop: embed, layers, logits, sample"),
    ("model", "L x [norm, attention with cache, norm, route, dispatch, experts, combine]"),
    ("dispatch", f"{', '.join(DISPATCHES)}: how tokens reach their experts"),
    ("expert backends", f"{', '.join(BACKENDS)}: how a device computes its experts"),
    ("convert", "Hugging Face safetensors and Orbax, streamed and checked"),
    ("sharding", "one mesh: data x expert x tensor; collectives counted in compiled programs"),
)


def poster(reports: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    parts = [
        text(MARGIN, 46, "moejax: Mixtral mixture-of-experts decoding in JAX", size=24),
        text(
            MARGIN, 70, "One device or a mesh; intra-expert, inter-expert or hybrid parallelism; dropless.", fill=FAINT
        ),
    ]
    left, left_end = architecture(MARGIN, 100)
    right, right_end = strategies(2 * MARGIN + HALF, 100, reports)
    below, end = results(MARGIN, max(left_end, right_end) + 26, reports)
    return svg(WIDTH, end + 20, "moejax: architecture, strategies, results", [*parts, *left, *right, *below])


def architecture(x: float, y: float) -> tuple[list[str], int]:
    """The layers of the code, from the command line down; imports point downwards."""
    parts = [text(x, y + 14, "Architecture", size=16)]
    top = y + 28
    for place, (name, words) in enumerate(LAYERS):
        where = top + place * 44
        parts += [box(x, where, HALF, 36, PANEL, stroke="#d1d9e0", radius=6)]
        parts += [box(x, where, 5, 36, HELD), text(x + 16, where + 15, name, size=13)]
        parts += [text(x + 16, where + 29, words, size=11, fill=FAINT)]
    return parts, int(top + len(LAYERS) * 44)


def strategies(x: float, y: float, reports: Sequence[dict[str, Any]]) -> tuple[list[str], int]:
    """What each way to split the model reads and sends, counted; the bars are of what is read."""
    parts = [text(x, y + 14, "Strategies", size=16)]
    counted = [report for report in reports if "strategies" in report]
    if not counted:
        return [*parts, text(x, y + 40, "no report of strategies was given", fill=FAINT)], int(y + 60)
    found = counted[0]
    rows = [row for report in counted for row in report["strategies"]["rows"]]
    how = found["strategies"]["how"]
    parts += [text(x, y + 36, f"{found['model']['name']}, {found['model']['dtype']}: {how}", size=11, fill=FAINT)]
    most = max(work["decode_step"]["weight_bytes_read"] for row in rows for work in row["works"])
    top = y + 52
    for row in rows:
        parts += [text(x, top + 14, f"{row['strategy']}: {row['mesh']}", size=13)]
        weights = f"{row['weight_bytes_per_device'] / 1e6:,.0f} MB of weights per device, dispatch {row['dispatch']}"
        parts += [text(x, top + 30, weights, size=11, fill=FAINT)]
        for place, work in enumerate(row["works"]):
            step = work["decode_step"]
            line = top + 40 + place * 18
            length = max(2.0, (HALF - 390) * step["weight_bytes_read"] / most)
            parts += [text(x, line + 11, f"batch {work['batch_size']}", size=11)]
            parts += [box(x + 64, line, length, 13, HOME[2])]
            sent = f"{step['wire_bytes_per_device'] / 1e3:,.1f} kB sent, {step['collectives']} collectives"
            told = f"{step['weight_bytes_read'] / 1e6:,.1f} MB read, {sent}"
            parts += [text(x + 70 + length, line + 11, told, size=11)]
        top += 52 + 18 * len(row["works"])
    return parts, int(top)


def results(x: float, y: float, reports: Sequence[dict[str, Any]]) -> tuple[list[str], int]:
    """Bars of tokens per second, the same scale within each piece of work; wins and losses alike."""
    parts = [text(x, y + 14, "Results", size=16)]
    compared = [report for report in reports if "compare" in report]
    if not compared:
        return [*parts, text(x, y + 40, "no report of a comparison was given", fill=FAINT)], int(y + 60)
    columns = [y + 24, y + 24]
    for report in compared:
        for title, shown in charts(report["compare"]):
            side = columns.index(min(columns))
            title = f"{report['model']['name']}, {title}"
            parts += bars(x + side * (HALF + MARGIN), columns[side], title, shown)
            columns[side] += 40 + 18 * len(shown)
    return [*parts, *circumstances(x, max(columns) + 8, compared)], int(max(columns) + 30)


def charts(compared: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What was compared, and each system's samples of it: decoding, prefill by itself, requests."""
    for work in compared["works"]:
        phase = "decode" if work["output_len"] > 1 else "prefill"
        name = "decoding" if phase == "decode" else f"prefill of {work['input_len']}"
        shown = [one[phase] | {"contender": one["contender"], "tokens": one["tokens"]} for one in work["results"]]
        if len(shown) > 1:
            yield f"{name}, batch {work['batch_size']}", shown
    served = compared["throughput"]
    if served and len(served["results"]) > 1:
        yield f"{served['num_requests']} ragged requests", served["results"]


def bars(x: float, y: float, title: str, shown: Sequence[dict[str, Any]]) -> list[str]:
    """One piece of work: a bar per system."""
    parts = [text(x, y + 20, title, size=13)]
    most = max(one["median_tokens_per_second"] for one in shown)
    for place, one in enumerate(shown):
        line, rate = y + 28 + place * 18, one["median_tokens_per_second"]
        length = max(2.0, (HALF - 390) * rate / most)
        ours = one["contender"] == "moejax"
        told = f"{rate:,.0f} tok/s" + ("" if ours else f"; moejax {ratio_text(one['median_ratio'])} x")
        told += "; WRONG TOKENS" if one["tokens"] == "WRONG" else ""
        parts += [text(x, line + 11, one["contender"], size=11)]
        parts += [box(x + 226, line, length, 13, HELD if ours else HOME[1])]
        parts += [text(x + 232 + length, line + 11, told, size=11)]
    return parts


def circumstances(x: float, y: float, compared: Sequence[dict[str, Any]]) -> list[str]:
    """Machine, date and commit: without them no number."""
    one = compared[0]
    machine = f"{one['machine']['processor']}, {one['compare']['threads']} threads"
    commit = one["versions"].get("commit", "release")
    words = f"Medians of {one['compare']['rounds']} interleaved rounds; {machine}; {one['date'][:10]}; {commit}."
    return [text(x, y + 8, words, size=11, fill=INK)]
