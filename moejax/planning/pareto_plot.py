"""The frontiers of a comparison as a picture: tokens/s of each user against tokens/s of each device.

Needs matplotlib, which comes with the extra `plot`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moejax.planning import units
from moejax.planning.apart import DPI, Marks, set_apart
from moejax.planning.compare import ComparisonInputs
from moejax.planning.pareto import Frontier, frontier, frontiers
from moejax.planning.plots import COLOURS
from moejax.planning.rows import MeshRow
from moejax.planning.sweep import answer
from moejax.planning.targets import Targets

APART = 0.035  # of the axes' width or height: how far the numbers of two points have to be from each other
MARGIN = 1.25  # of the smallest and largest speeds, what the axes show beyond them
STAR = "#000000"


def draw(rows: Sequence[MeshRow], plan: ComparisonInputs, title: str, path: Path) -> None:
    """Draws a line for each number of devices, or for each kind of split of one number, over all batch sizes that fit.

    Raises:
        ValueError: when no split can be used, so that there is nothing to draw.
    """
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    lines = frontiers(rows, plan)
    if not lines:
        raise ValueError("no split of this model fits these devices, so there is nothing to draw; use more devices")
    targets, drawn = rows[0].targets, [row for line in lines for row in line.rows]
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes: Any = figure.subplots()
    for line, colour in zip(lines, _colours(len(lines)), strict=True):
        _draw_frontier(axes, line, colour)
    _scales(axes, drawn)
    marks = _number(axes, frontier(drawn))
    if targets.tpot:
        axes.axvline(1 / targets.tpot, color="0.35", linestyle="--", linewidth=1, label=f"TPOT {_time(targets.tpot)}")
    best = answer(drawn).most
    if best is not None and targets:
        at = (best.tokens_per_second_per_request, best.tokens_per_second_per_device)
        axes.plot(*at, "*", markersize=15, color=STAR, markerfacecolor="none", label="best within the targets")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    axes.set_title(_said(targets, best), fontsize=9)
    set_apart(figure, marks)
    figure.savefig(path, dpi=DPI)


def _draw_frontier(axes: Any, line: Frontier, colour: Any) -> None:
    """The line, and a point for each batch size: full where it misses no target."""
    users = [row.tokens_per_second_per_request for row in line.rows]
    each = [row.tokens_per_second_per_device for row in line.rows]
    axes.plot(users, each, "-", color=colour, linewidth=1.3, marker="o", markersize=4, label=line.name)
    missed = [(x, y) for x, y, row in zip(users, each, line.rows, strict=True) if row.meets_targets is False]
    if missed:
        axes.plot(*zip(*missed, strict=True), "o", color=colour, markersize=4, markerfacecolor="white")


def _scales(axes: Any, rows: Sequence[MeshRow]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    users = [row.tokens_per_second_per_request for row in rows]
    limits = [1 / rows[0].targets.tpot] if rows[0].targets.tpot else []
    each = [row.tokens_per_second_per_device for row in rows]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(users + limits) / MARGIN, max(users + limits) * MARGIN)
    axes.set_ylim(min(each) / MARGIN, max(each) * MARGIN)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(lambda value, _: units.number(value))
    axes.set_xlabel("tokens/s of each user (one sequence)")
    axes.set_ylabel("tokens/s of each device")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _number(axes: Any, rows: Sequence[MeshRow]) -> Marks:
    """The batch size beside the points that no other is better than, as far as there is room."""
    to_fraction = axes.transScale + axes.transLimits
    points = [(row.tokens_per_second_per_request, row.tokens_per_second_per_device) for row in rows]
    texts, last = [], None
    for row, point in zip(rows, points, strict=True):
        at = to_fraction.transform(point)
        if last is None or max(abs(at - last)) > APART:
            texts.append(
                axes.annotate(f"{row.batch_size:,}", point, xytext=(4, 4), textcoords="offset points", fontsize=7)
            )
            last = at
    return Marks(axes=axes, texts=texts, points=points)


def _colours(count: int) -> list[Any]:
    """Told apart where there are few, in order where there are many."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps

    return [colormaps["viridis"](0.95 * place / (count - 1)) for place in range(count)]


def _said(targets: Targets, best: MeshRow | None) -> str:
    """What the picture shows, and the best point of it."""
    said = "the best splits at every batch size that fits; numbers beside points are batch sizes"
    if not targets:
        return said
    said += f"; hollow: not within {targets}\n"
    if best is None:
        return f"{said}no split is within them at any batch size"
    where = "1 device" if best.devices == 1 else f"{best.devices:,} devices"
    return (
        f"{said}star: {best.label} on {where} at batch {best.batch_size:,}, "
        f"{units.number(best.tokens_per_second_per_device)} tokens/s of each device"
    )


def _time(seconds: float) -> str:
    return units.amount(seconds, units.SECONDS)
