"""PNG plots of a benchmark: latency, throughput and ratio against batch, and the fraction of the roofline. No JAX."""

import importlib.util
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

OURS = "moejax"
# Okabe and Ito's palette, told apart by colour-blind readers; moejax is always the first.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f")
MARKERS = "osD^vPX"
Series = dict[str, list[tuple[float, float]]]  # contender -> (batch, value)


def check_plots() -> None:
    """Raises ValueError when matplotlib is not installed: to be asked before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--report draws with matplotlib, which is not installed; run: pip install 'moejax[bench]'")


def draw_plots(folder: Path, result: Mapping[str, Any]) -> dict[str, str]:
    """Draws what `result` has data for; returns the names of the files and what each shows.

    Raises:
        ValueError: when matplotlib is not installed.
    """
    check_plots()
    import_module("matplotlib").use("Agg")  # draws without a screen
    title = f"{result['model']['name']}, {result['model']['dtype']}, {result['machine']['processor']}"
    drawn: dict[str, str] = {}

    def draw(name: str, what: str, paint: Callable[[Any], None]) -> None:
        pyplot = import_module("matplotlib.pyplot")
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        paint(axes)
        axes.set_title(f"{what}\n{title}", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / name, dpi=120)
        pyplot.close(figure)
        drawn[name] = what

    if compared := result.get("compare"):
        for before, after in dict.fromkeys((w["input_len"], w["output_len"]) for w in compared["works"]):
            works = [w for w in compared["works"] if (w["input_len"], w["output_len"]) == (before, after)]
            shape = f"p{before}_n{after}"
            if after > 1:
                rates = _series(works, "decode", lambda one, work: one["median_tokens_per_second"])
                step = _series(
                    works, "decode", lambda one, work: 1e3 * work["batch_size"] / one["median_tokens_per_second"]
                )
                ratio = _series(works, "decode", lambda one, work: one["median_ratio"])
                draw(f"throughput_{shape}.png", f"Decoding after {before} tokens: tokens/s", _lines(rates, "tokens/s"))
                draw(f"latency_{shape}.png", f"Decoding after {before} tokens: ms per step", _lines(step, "ms"))
                draw(f"ratio_{shape}.png", f"Decoding after {before} tokens: moejax / system", _ratios(ratio))
            prefill = _series(works, "prefill", lambda one, work: one["median_ratio"])
            draw(f"prefill_ratio_{shape}.png", f"Prefill of {before} tokens: moejax / system", _ratios(prefill))
    if latency := result.get("latency"):
        mbu: Series = {}
        for one in latency:
            if one["mbu"] is not None:
                key = f"decoding after {one['input_len']}: bandwidth"
                mbu.setdefault(key, []).append((one["batch_size"], one["mbu"]))
            key = f"prefill of {one['input_len']}: FLOPs"
            mbu.setdefault(key, []).append((one["batch_size"], one["mfu"]))
        draw("roofline.png", "Fraction of the roofline measured in the same run", _fractions(mbu))
    return drawn


def _series(works: list[dict[str, Any]], part: str, value: Callable[[Any, Any], float]) -> Series:
    found: Series = {}
    for work in works:
        for one in work["results"]:
            found.setdefault(one["contender"], []).append((work["batch_size"], value(one[part], work)))
    return {name: sorted(points) for name, points in found.items()}


def _paint_series(axes: Any, series: Series) -> None:
    for place, (name, points) in enumerate(series.items()):
        x, y = zip(*points, strict=True)
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


def _lines(series: Series, unit: str) -> Callable[[Any], None]:
    def paint(axes: Any) -> None:
        _paint_series(axes, series)
        axes.set_ylabel(unit)

    return paint


def _ratios(series: Series) -> Callable[[Any], None]:
    """Every system but moejax, whose ratio is 1: the line above which moejax is faster."""

    def paint(axes: Any) -> None:
        others = {name: points for name, points in series.items() if name != OURS}
        names = list(others)
        batches = sorted({x for points in series.values() for x, _ in points})
        width = 0.8 / max(1, len(names))
        for place, name in enumerate(names):
            offsets = [batches.index(x) + (place - (len(names) - 1) / 2) * width for x, _ in others[name]]
            heights = [y for _, y in others[name]]
            bars = axes.bar(offsets, heights, width * 0.94, label=name, color=COLOURS[1:][place % (len(COLOURS) - 1)])
            axes.bar_label(bars, [f"{height:.2f}" for height in heights], fontsize=7)
        axes.axhline(1, color="#1f2328", linewidth=1)
        axes.text(-0.48, 1, "above: moejax is faster ", fontsize=7, va="bottom")
        axes.set_xticks(range(len(batches)), [f"{batch:g}" for batch in batches])
        axes.set_xlabel("batch size")
        axes.set_ylabel("times as fast")
        axes.margins(y=0.15)
        if names:
            axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    return paint


def _fractions(series: Series) -> Callable[[Any], None]:
    def paint(axes: Any) -> None:
        _paint_series(axes, series)
        highest = max(y for points in series.values() for _, y in points)
        axes.set_ylim(0, max(1.05, 1.05 * highest))  # a kernel better than XLA's product passes 1
        axes.set_ylabel("of what the machine can do")

    return paint
