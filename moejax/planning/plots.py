"""A comparison as a picture: what each split's step is made of, and tokens per second against the batch size.

Needs matplotlib, which comes with the extra `plot`; nothing else here imports it.
"""

import math
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moejax.planning import units
from moejax.planning.apart import DPI, Marks, set_apart
from moejax.planning.compare import ComparisonInputs
from moejax.planning.crossovers import Crossover, ThroughputCurve, batch_crossovers, curve
from moejax.planning.ranking import best
from moejax.planning.rows import MeshRow

PARTS = (
    ("weights", "weights_seconds", "#4477aa"),
    ("KV cache", "kv_seconds", "#66ccee"),
    ("compute beyond reading", "exposed_compute_seconds", "#228833"),
    ("latency of collectives", "latency_seconds", "#ccbb44"),
    ("exchange between devices", "bandwidth_seconds", "#ee6677"),
    ("overhead", "overhead_seconds", "#aa3377"),
)
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000")
STYLES = ("-", "--", "-.", ":", "-", "--", "-.", ":")
FEWEST_BARS, MOST_BARS = 8, 24  # that there is room for
CLOSE = (0.025, 0.05)  # of the axes' width and height: how near the numbers of two circles would hide each other
MOST_CURVES = len(COLOURS)


def check_plot(path: str, flag: str = "--plot") -> None:
    """Raises ValueError when a picture cannot be drawn where `flag` says, before anything is computed."""
    if find_spec("matplotlib") is None:
        raise ValueError(f"{flag} needs matplotlib; install it with: pip install 'moejax[plot]'")
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{flag} must be a .png, .svg or .pdf file, got {path!r}")
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise ValueError(f"{flag} {path}: there is no such folder; make it first")
    if Path(path).is_dir():
        raise ValueError(f"{flag} {path} is a folder; name a file")
    try:
        with tempfile.TemporaryFile(dir=folder):  # the permissions of a folder do not tell: none can write in /proc
            pass
    except OSError as error:
        raise ValueError(f"{flag} {path}: cannot write in {folder} ({error.strerror}); name another file") from error


def draw(rows: Sequence[MeshRow], plan: ComparisonInputs, title: str, path: Path) -> None:
    """Draws the bars of the largest batch size in `rows`, beside the curves of the splits worth telling apart.

    Raises:
        ValueError: when no split can be used, so that there is nothing to draw.
    """
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    usable = [row for row in rows if row.fits]
    if not usable:
        raise ValueError("no split of this model fits these devices, so there is nothing to draw; use more devices")
    batch = max(row.workload.batch_size for row in usable)
    bars = [row for row in usable if row.workload.batch_size == batch]
    curves = chosen_curves([row for row in usable if row.built], plan)
    crossovers = leading(curves, batch_crossovers(curves))
    notes = 0.3 + 0.16 * max(1, len(crossovers))  # inches of text below the curves
    height = max(6.0 + notes, 2.2 + 0.3 * min(len(bars), MOST_BARS))
    figure = Figure(figsize=(15, height), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    left, right = halves
    figure.suptitle(title, fontsize=12)
    _draw_bars(left.subplots(), bars, batch)
    speed, share, text = right.subplots(3, 1, height_ratios=(height - notes, height - notes, 2 * notes))
    numbers = [_draw_curves(speed, curves, crossovers), _draw_shares(share, curves, crossovers)]
    right.legend(
        handles=speed.get_lines()[: len(curves)], loc="outside upper center", ncols=2, fontsize=8, frameon=False
    )
    text.axis("off")
    text.text(0, 1, crossover_text(crossovers), transform=text.transAxes, va="top", fontsize=8)
    for marks in numbers:
        set_apart(figure, marks)
    figure.savefig(path, dpi=DPI)


def chosen_curves(rows: Sequence[MeshRow], plan: ComparisonInputs) -> list[ThroughputCurve]:
    """The splits that are fastest at some batch size, then those along one axis alone; MOST_CURVES at most.

    `all_to_all` sends what `gather` sends and the routing besides, so it is drawn only where it is fastest.
    """
    by_split = {row.split: row for row in rows}
    curves = {
        split: curve(plan, split, row.workload, row.largest_batch or 1)
        for split, row in by_split.items()
        if row.largest_batch
    }
    longest = max((one.batches for one in curves.values()), key=len)
    fastest = [
        max(
            (split for split, one in curves.items() if len(one.batches) > place),
            key=lambda split, place=place: round(curves[split].tokens_per_second[place], 6),
        )
        for place in range(len(longest))
    ]
    alone = [
        split
        for split in curves
        if sum(size > 1 for size in split.mesh.shape.values()) == 1 and split.dispatch != "all_to_all"
    ]
    listed = list(dict.fromkeys([*fastest, *alone]))
    first = best(rows, "latency")
    if not listed and first:
        listed = [first.split]
    return [curves[split] for split in listed[:MOST_CURVES]]


def _draw_bars(axes: Any, every: Sequence[MeshRow], batch: int) -> None:
    rows = every[:MOST_BARS]
    places = range(len(rows))
    reached = [0.0] * len(rows)
    unit = units.common_unit((row.decode.seconds for row in rows if row.decode), units.SECONDS)
    for name, field, colour in PARTS:
        widths = [getattr(row.decode, field) / unit.scale for row in rows]
        if any(widths):
            axes.barh(places, widths, left=reached, color=colour, label=name, edgecolor="white", linewidth=0.4)
        reached = [a + b for a, b in zip(reached, widths, strict=True)]
    for place, total in zip(places, reached, strict=True):
        axes.annotate(f" {units.number(total)}", (total, place), va="center", fontsize=8)
    axes.set_yticks(places, [row.label for row in rows], fontsize=8)
    axes.set_ylim(max(len(rows), FEWEST_BARS) - 0.5, -0.5)  # the best on top
    axes.set_xlim(0, max(reached) * 1.12)
    axes.set_xlabel(f"{unit.name} of a decode step")
    some = f" (the first {len(rows)} of {len(every)} splits)" if len(rows) < len(every) else ""
    axes.set_title(f"what a step is made of, batch {batch:,}{some}", fontsize=10)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curves(axes: Any, curves: Sequence[ThroughputCurve], crossovers: Sequence[Crossover]) -> Marks:
    from matplotlib.ticker import LogLocator, NullFormatter

    for one, colour, style in zip(curves, COLOURS, STYLES, strict=False):
        axes.plot(one.batches, one.tokens_per_second, style, color=colour, marker=".", label=one.label, linewidth=1.6)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda value, _: units.number(value))
    axes.set_ylabel("tokens/s, all sequences")
    axes.set_title("tokens per second against batch size; circles: another split takes the lead", fontsize=10)
    _batches(axes)
    return _mark(axes, [(one.batch, one.tokens_per_second) for one in crossovers])


def leading(curves: Sequence[ThroughputCurve], crossovers: Sequence[Crossover]) -> list[Crossover]:
    """Those between splits of which none is slower than 95% of the fastest: the others change no decision."""
    return [one for one in crossovers if one.tokens_per_second >= 0.95 * _fastest_at(curves, one)]


def _fastest_at(curves: Sequence[ThroughputCurve], one: Crossover) -> float:
    """Tokens per second of the fastest at the batch size of a crossover, on straight lines between logarithms."""
    fastest = _fastest(curves)
    low, high = math.log(fastest[one.below]), math.log(fastest[one.above])
    along = math.log(one.batch / one.below) / math.log(one.above / one.below)
    return math.exp(low + along * (high - low))


def _fastest(curves: Sequence[ThroughputCurve]) -> dict[int, float]:
    """Tokens per second of the fastest at each batch size."""
    longest = max((one.batches for one in curves), key=len)
    return {
        batch: max(one.tokens_per_second[place] for one in curves if len(one.batches) > place)
        for place, batch in enumerate(longest)
    }


def _draw_shares(axes: Any, curves: Sequence[ThroughputCurve], crossovers: Sequence[Crossover]) -> Marks:
    """Each curve as a share of the fastest at each batch size, where lines that lie close come apart."""
    fastest = _fastest(curves)
    for one, colour, style in zip(curves, COLOURS, STYLES, strict=False):
        share = [100 * speed / fastest[b] for b, speed in zip(one.batches, one.tokens_per_second, strict=True)]
        axes.plot(one.batches, share, style, color=colour, marker=".", linewidth=1.6)
    places = [(one.batch, 100 * one.tokens_per_second / _fastest_at(curves, one)) for one in crossovers]
    axes.set_ylabel("% of the fastest")
    axes.set_ylim(bottom=0 if len(curves) == 1 else None, top=105)
    axes.set_xlabel("batch size (sequences)")
    _batches(axes)
    return _mark(axes, places)


def _mark(axes: Any, places: Sequence[tuple[float, float]]) -> Marks:
    """A circle at each place, and its number; circles that lie on each other share one text."""
    for place in places:
        axes.plot(*place, "o", markersize=8, markerfacecolor="none", markeredgecolor="black")
    texts = [
        axes.annotate(
            ", ".join(str(number + 1) for number in numbers),
            places[numbers[0]],
            xytext=(4, 5),
            textcoords="offset points",
            fontsize=8,
        )
        for numbers in _close_together(axes, places)
    ]
    return Marks(axes=axes, texts=texts, points=places)


def _close_together(axes: Any, places: Sequence[tuple[float, float]]) -> list[list[int]]:
    """Positions in `places`, those whose circles overlap in one list. The scales of the axes have to be set."""
    to_fraction = axes.transScale + axes.transLimits  # of the width and height of the axes
    at = [to_fraction.transform(place) for place in places]
    groups: list[list[int]] = []
    for number, place in enumerate(at):
        near = [group for group in groups if all(abs(at[group[0]] - place) < CLOSE)]
        if near:
            near[0].append(number)
        else:
            groups.append([number])
    return groups


def _batches(axes: Any) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def crossover_text(crossovers: Sequence[Crossover]) -> str:
    """A line for each, numbered as in the picture; "no crossover" where there is none."""
    if not crossovers:
        return "no crossover: one of these splits leads at every batch size"
    return "\n".join(
        f"{count}: {one.later} overtakes {one.earlier} between {one.below:,} and {one.above:,}"
        for count, one in enumerate(crossovers, 1)
    )
