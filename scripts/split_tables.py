"""Choosing and writing down measured layers: what the sections of docs/intra_vs_inter.md have in common."""

from collections.abc import Iterable, Sequence
from statistics import median

from scripts.measured_layers import Cell

GPUS = {
    "a100-80gb": "A100",
    "h100-sxm": "H100",
    "h200": "H200",
    "b200": "B200",
    "l40s": "L40S",
    "rtx-pro-6000": "RTX PRO 6000",
}
BALANCED, SKEWED = "balanced", "power_law_1.01"
LOAD_NAMES = {BALANCED: "balanced", SKEWED: "power law 1.01", "power_law_1.2": "power law 1.2"}
SHOWN = (1, 8, 64, 512, 4096, 16384)  # tokens
LONG = 4096  # tokens, from which on a batch counts as a prefill
MOST = 16384
ON = 8  # devices


def of(cells: Iterable[Cell], model: str, load: str, least: int = 1, most: int = MOST) -> list[Cell]:
    """Those of one model and load on eight devices, from `least` to `most` tokens."""
    wanted = (model, load, ON)
    return [
        cell
        for cell in cells
        if (cell.case.model, cell.case.load, cell.case.devices) == wanted and least <= cell.tokens <= most
    ]


def ratio(cells: Iterable[Cell]) -> float:
    """Seconds of expert parallelism over those of tensor parallelism, median."""
    return median(cell.inter_over_intra for cell in cells)


def gpus(cells: Iterable[Cell]) -> str:
    """Names of the GPUs among them."""
    return listed([name for key, name in GPUS.items() if key in {cell.case.hardware for cell in cells}])


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]
