"""PNG plots of a benchmark: latency, throughput and ratio against batch, and the fraction of the roofline. No JAX.

What is drawn is planned without matplotlib. The background is white: a plot reads the same on a light and on a dark
page. Each file holds the digest of the report that it was drawn from.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from moejax.bench.standings import OURS, measurements, ratio_text

# Okabe and Ito's palette, told apart by colour-blind readers; moejax is always the first.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f")
MARKERS = "osD^vPX"
Series = dict[str, list[tuple[float, float]]]  # contender -> (batch, value)
Bars = dict[str, dict[str, float]]  # contender -> work -> moejax's speed over its


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture: its file, what it shows, and what paints it on matplotlib's axes."""

    file: str
    what: str
    paint: Callable[[Any], None]


def draw_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Draws what `result` has data for.

    Raises:
        ValueError: when matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plots are drawn with matplotlib, which is not installed; run: pip install 'moejax[plot]'")
    figures = import_module("matplotlib.figure")  # no pyplot: no window, no global state
    model = result["model"]
    title = f"{model['name']}, {model['dtype']}, {result['machine']['processor']}, {result['machine']['cores']} cores"
    for plot in plan_plots(result):
        figure = figures.Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        plot.paint(axes)
        axes.set_title(f"{plot.what}\n{title}", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / plot.file, dpi=100, metadata={"Source": digest(result)})


def digest(result: Mapping[str, Any]) -> str:
    """What tells one report from every other."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def plan_plots(result: Mapping[str, Any]) -> list[Plot]:
    """The pictures that a report has data for."""
    plots: list[Plot] = []
    if compared := result.get("compare"):
        plots += _against_batch(compared["works"])
        decoding, prefill = _ratios(compared)
        if decoding:
            what = "How many times as fast moejax decodes"
            if compared["throughput"]:
                what += " batches and ragged requests"
            plots.append(Plot(file="ratio.png", what=what, paint=partial(_paint_bars, bars=decoding)))
        if prefill:
            what = "How many times as fast moejax prefills"
            plots.append(Plot(file="ratio_prefill.png", what=what, paint=partial(_paint_bars, bars=prefill)))
    if latency := result.get("latency"):
        plots += _against_batch(
            [one | {"results": [{"contender": OURS, "decode": _rate(one)}]} for one in latency if one["decode"]]
        )
        what = "Fraction of the roofline measured in the same run"
        paint = partial(_paint_fractions, series=_utilisation(latency))
        plots.append(Plot(file="roofline.png", what=what, paint=paint))
    return plots


def _against_batch(works: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Steps and rates of decoding over the batch size, a pair of pictures for each length of prompt and output."""
    rates: dict[tuple[int, int], Series] = {}
    steps: dict[tuple[int, int], Series] = {}
    for work in [work for work in works if work["output_len"] > 1]:
        lengths, batch = (work["input_len"], work["output_len"]), work["batch_size"]
        for one in work["results"]:
            rate = one["decode"]["median_tokens_per_second"]
            rates.setdefault(lengths, {}).setdefault(one["contender"], []).append((batch, rate))
            steps.setdefault(lengths, {}).setdefault(one["contender"], []).append((batch, 1e3 * batch / rate))
    plots = []
    for before, after in rates:
        for name, what, series, unit in (
            ("latency", "milliseconds per step", steps[before, after], "ms per step"),
            ("throughput", "tokens per second", rates[before, after], "tokens/s"),
        ):
            plots.append(
                Plot(
                    file=f"{name}_p{before}_n{after}.png",
                    what=f"Decoding after {before} tokens: {what}",
                    paint=partial(_paint_lines, series=series, unit=unit),
                )
            )
    return plots


def _rate(one: Mapping[str, Any]) -> dict[str, float]:
    """What `moejax bench latency` found of decoding, as `compare` has it."""
    return {
        "median_tokens_per_second": one["batch_size"] * (one["output_len"] - 1) / one["decode"]["percentiles"]["50"]
    }


def _ratios(compared: Mapping[str, Any]) -> tuple[Bars, Bars]:
    """Of decoding and of requests; and of prefill."""
    decoding: Bars = {}
    prefill: Bars = {}
    for one in measurements(compared):
        if one.contender == OURS:
            continue
        if one.part == "throughput":
            bars, name = decoding, f"{one.of['num_requests']} requests"
        elif one.part == "decode":
            bars, name = decoding, f"batch {one.of['batch_size']}, after {one.of['input_len']}"
        else:
            bars, name = prefill, f"{one.of['batch_size']} x {one.of['input_len']}"
        bars.setdefault(one.contender, {})[name] = one.samples["median_ratio"]
    return decoding, prefill


def _utilisation(latency: list[dict[str, Any]]) -> Series:
    found: Series = {}
    for one in latency:
        if one["mbu"] is not None:
            name = f"decoding after {one['input_len']}: bandwidth (MBU)"
            found.setdefault(name, []).append((one["batch_size"], one["mbu"]))
        name = f"prefill of {one['input_len']}: FLOPs (MFU)"
        found.setdefault(name, []).append((one["batch_size"], one["mfu"]))
    return found


def _paint_series(axes: Any, series: Series) -> None:
    for place, (name, points) in enumerate(series.items()):
        x, y = zip(*sorted(points), strict=True)
        axes.plot(
            x,
            y,
            label=name,
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            linewidth=2.4 if name == OURS else 1.4,
        )
    batches = sorted({x for points in series.values() for x, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [f"{batch:g}" for batch in batches])
    axes.minorticks_off()
    axes.set_xlabel("batch size")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, frameon=False)


def _paint_lines(axes: Any, series: Series, unit: str) -> None:
    _paint_series(axes, series)
    axes.set_ylabel(unit)


def _paint_bars(axes: Any, bars: Bars) -> None:
    """A group for each piece of work and a bar for each system; moejax's own ratio is 1, the line across."""
    works = list(dict.fromkeys(work for one in bars.values() for work in one))
    groups = {work: [name for name in bars if work in bars[name]] for work in works}
    width = 0.84 / max(1, len(bars))
    for place, (name, heights) in enumerate(bars.items()):
        offsets = [
            works.index(work) + (groups[work].index(name) - (len(groups[work]) - 1) / 2) * width for work in heights
        ]
        colour = COLOURS[1:][place % (len(COLOURS) - 1)]
        drawn = axes.bar(offsets, heights.values(), width * 0.94, label=name, color=colour)
        # on white, for the line at 1 would strike through those of bars that end near it
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        labels = [ratio_text(height) for height in heights.values()]
        axes.bar_label(drawn, labels, fontsize=7, padding=2, bbox=behind, zorder=3)
    axes.axhline(1, color="#1f2328", linewidth=1, zorder=2)
    axes.set_xticks(range(len(works)), works, fontsize=8)
    axes.set_xlim(-0.5, len(works) - 0.5)
    axes.set_ylabel("moejax / system (below 1: moejax loses)", fontsize=9)
    axes.margins(y=0.15)
    if bars:
        axes.figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)


def _paint_fractions(axes: Any, series: Series) -> None:
    _paint_series(axes, series)
    highest = max(y for points in series.values() for _, y in points)
    axes.set_ylim(0, max(1.05, 1.05 * highest))  # a kernel better than XLA's product passes 1
    axes.axhline(1, color="#1f2328", linewidth=1)
    axes.set_ylabel("of what the machine can do")
