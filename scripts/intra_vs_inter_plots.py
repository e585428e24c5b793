"""The plots of docs/intra_vs_inter.md, a PNG for each GPU. Needs matplotlib.

Planned without it: each file holds the digest of what was planned, and the background is white, to read the same on a
light and on a dark page.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from moejax.planning.silicon import ENGINES
from scripts.layer_exchanges import with_exchanges
from scripts.measured_layers import BFLOAT16, MODELS, Cell

TENSOR = "#0072b2"
COLOURS = {1: "#d55e00", 2: "#009e73", 4: "#cc79a7"}  # by devices along tensor
# By kind of split, whatever the number of devices.
NAMES = {1: "expert", 2: "tensor=2 x expert", 4: "tensor=4 x expert"}
STYLES = {"balanced": "-", "power_law_1.01": "--"}
LOAD_NAMES = {"balanced": "balanced", "power_law_1.01": "power law 1.01"}
PART_NAMES = {False: "the layer alone", True: "with its all-reduce"}
LOWEST, HIGHEST = 0.2, 9.0  # what is beyond ends at the edge
TICKS = (0.25, 0.5, 1, 2, 4, 8)

Lines = dict[tuple[int, str], list[tuple[int, float]]]  # (devices along tensor, load) -> (tokens, ratio)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Ratios to tensor parallelism under the same load, by tokens: a line for each other split and load."""

    model: str
    engine: str
    exchanges: bool
    devices: int
    lines: Lines


def panels(hardware: str, cells: Iterable[Cell]) -> list[Panel]:
    """What is drawn of one GPU, of as many devices as both pure splits were measured on."""
    mine = [one for one in cells if one.case.hardware == hardware and one.case.dtype == BFLOAT16]
    found = []
    for model in MODELS:
        of_model = [one for one in mine if one.case.model == model and one.case.load in STYLES]
        devices = max(one.case.devices for one in of_model)
        of_model = [one for one in of_model if one.case.devices == devices]
        for exchanges in PART_NAMES:
            drawn = with_exchanges(of_model) if exchanges else of_model
            for engine in ENGINES:
                lines = _lines([one for one in drawn if one.case.engine == engine])
                found.append(Panel(model=model, engine=engine, exchanges=exchanges, devices=devices, lines=lines))
    return found


def _lines(cells: Sequence[Cell]) -> Lines:
    lines: Lines = {}
    for cell in cells:
        for split in sorted(cell.seconds):
            if split != cell.case.intra:
                ratio = round(cell.seconds[split] / cell.seconds[cell.case.intra], 3)
                lines.setdefault((split.tensor, cell.case.load), []).append((cell.tokens, ratio))
    return lines


def digest(planned: Iterable[Panel]) -> str:
    """What tells one plan from every other."""
    text = json.dumps(
        [[one.model, one.engine, one.exchanges, one.devices, sorted(one.lines.items())] for one in planned]
    )
    return hashlib.sha256(text.encode()).hexdigest()


def draw(path: Path, title: str, planned: Sequence[Panel]) -> None:
    """Writes one PNG."""
    figure = Figure(figsize=(9.6, 8.8), layout="constrained")
    axes = figure.subplots(len(planned) // len(ENGINES), len(ENGINES), sharex=True, sharey=True, squeeze=False)
    for panel, one in zip(planned, axes.flat, strict=True):
        _paint(one, panel)
    for one, title_of in zip(axes[0], ENGINES.values(), strict=True):
        one.set_title(title_of, fontsize=9, loc="left")
    for one in axes[-1]:
        one.set_xlabel("tokens of the layer", fontsize=8)
    for one, panel in zip(axes[:, 0], planned[:: len(ENGINES)], strict=True):
        one.set_ylabel(f"{panel.model}, {panel.devices} GPUs\n{PART_NAMES[panel.exchanges]}", fontsize=8)
        one.text(0.4, 0.95, "tensor wins", transform=one.transAxes, fontsize=8, va="top", color=TENSOR)
        one.text(0.4, 0.05, "tensor loses", transform=one.transAxes, fontsize=8, color=COLOURS[1])
    handles: dict[str, Any] = {}
    for one in axes.flat:
        handles |= {label: handle for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=4,
        columnspacing=1.2,
        fontsize=8,
        frameon=False,
    )
    figure.suptitle(f"{title}: seconds of each split over those of tensor parallelism", fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=80, metadata={"Source": digest(planned)})


def _paint(axes: Any, panel: Panel) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_ylim(LOWEST, HIGHEST)
    axes.set_xlim(1, 16384)
    axes.axhspan(1, HIGHEST, color=TENSOR, alpha=0.07, linewidth=0)
    axes.axhspan(LOWEST, 1, color=COLOURS[1], alpha=0.07, linewidth=0)
    axes.axhline(1, color=TENSOR, linewidth=1.4, label="tensor")
    for (tensor, load), points in panel.lines.items():
        x, y = zip(*points, strict=True)
        label = f"{NAMES[tensor]}, {LOAD_NAMES[load]}"
        axes.plot(x, y, STYLES[load], color=COLOURS[tensor], linewidth=1.8 if tensor == 1 else 1.1, label=label)
    if not panel.lines:
        axes.text(0.5, 0.7, "not measured under these loads", transform=axes.transAxes, fontsize=8, ha="center")
    axes.set_xticks([4**i for i in range(8)], ["1", "4", "16", "64", "256", "1k", "4k", "16k"], fontsize=7)
    axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS], fontsize=7)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
