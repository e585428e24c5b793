"""Tables of docs/predictions.md on MoE layers: how far off, which split is ranked first, and why where past a bar."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from statistics import median

from moejax.planning.hardware_file import load_hardware
from moejax.planning.silicon import ENGINES
from scripts.measured_layers import MODELS, QWEN, Cell, LayerSplit, read_cells
from scripts.predicted_layers import WITHIN, PredictedLayer, in_order, off, predicted, predicted_layers
from scripts.predictions_data import read
from scripts.report_tables import table

MEDIAN_BAR, WITHIN_BAR, RANKING_BAR = 0.10, 0.90, 0.95
TIE = 0.05  # predicted so close, two splits are called equal
FEW = 128  # tokens
# What scripts.fit_hardware reports of layers, and what the page calls it.
PARTS = {
    "fitted": "fitted",
    "other shape": "another model's",
    "other load": "another load",
    "other version": "the version before",
}
PRECISIONS = {"bfloat16": "bf16", "float8_e4m3fn": "fp8"}


def held_out() -> list[PredictedLayer]:
    """Layers of the model that the terms were not fitted to."""
    return [layer for layer in predicted_layers() if layer.case.model == QWEN]


def layers_table() -> str:
    """Per GPU, engine and dtype: errors of the fit, as scripts.fit_hardware reports them."""
    rows = []
    for hardware, engines in read("fit_errors").items():
        for software, dtypes in engines.items():
            for dtype, parts in dtypes.items():
                cells = (_median_within(parts.get(name)) for name in PARTS)
                others = (f"{parts[name]['median']:.0%}" for name in ("products", "decode attention", "prompts"))
                rows.append((f"{hardware}, {ENGINES[software]}, {PRECISIONS[dtype]}", *cells, *others))
    header = ("layers of", *PARTS.values(), "dense products", "decode attention", "prompts")
    return table(header, rows)


def _median_within(found: dict[str, float] | None) -> str:
    if found is None:
        return "not measured"
    text = f"{found['median']:.1%}, {found['within']:.1%}"
    return f"**{text}**" if found["median"] > MEDIAN_BAR or found["within"] < WITHIN_BAR else text


def held_out_table() -> str:
    """By engine, and in all."""
    rows = []
    for name in (*ENGINES, "all"):
        count, middle, within = off([one for one in held_out() if name in ("all", one.case.engine)])
        share = f"{within:.1%}" if within >= WITHIN_BAR else f"**{within:.1%}**"
        rows.append((ENGINES.get(name, name), f"{count:,}", f"{middle:.1%}", share))
    return table(("engine", "layers", "median error", "within 25%"), rows)


def sglang_elsewhere() -> float:
    """The share within 25% under SGLang, the A100 aside."""
    return off([one for one in held_out() if one.case.engine == "sglang" and one.case.hardware != "a100-80gb"])[2]


def reported(part: str) -> list[dict[str, float]]:
    """What the fit reports of one part, by GPU, engine and dtype."""
    found = (kinds for engines in read("fit_errors").values() for by in engines.values() for kinds in by.values())
    return [kinds[part] for kinds in found if part in kinds]


def reported_within(part: str) -> float:
    """The share of all its rows that is within 25%."""
    found = reported(part)
    return sum(one["rows"] * one["within"] for one in found) / sum(one["rows"] for one in found)


def groups_of(layers: Iterable[PredictedLayer]) -> dict[tuple[str, str, str], list[PredictedLayer]]:
    """By GPU, engine and dtype."""
    found: dict[tuple[str, str, str], list[PredictedLayer]] = defaultdict(list)
    for layer in layers:
        found[layer.case.hardware, layer.case.engine, layer.case.dtype].append(layer)
    return found


def outside_lines() -> list[str]:
    """Each GPU, engine and dtype past the bar on another model's layers, with what those past 25% have in common."""
    lines = []
    for (hardware, software, dtype), layers in groups_of(held_out()).items():
        _, middle, within = off(layers)
        if middle > MEDIAN_BAR or within < WITHIN_BAR:
            bad = [layer for layer in layers if abs(layer.error) > WITHIN]
            lines.append(
                f"- {hardware}, {ENGINES[software]}, {PRECISIONS[dtype]} (median {middle:.1%}, {within:.0%} within "
                f"25%): {layer_reason(bad, ENGINES[software])}"
            )
    return lines


def layer_reason(bad: Sequence[PredictedLayer], engine: str) -> str:
    """What most of these layers have in common, of what is known to matter."""
    untuned = sum(layer.untuned for layer in bad)
    cached = sum(0.5 <= layer.of_cache <= 1.5 for layer in bad)
    slow = sum(layer.error > 0 for layer in bad)
    said = f"of the {len(bad)} layers past it, {slow} were predicted too long, "
    if untuned >= max(cached, len(bad) / 2):
        return said + (
            f"and for the shapes of {untuned} {engine} has no tuned configuration: all such shapes share their terms, "
            "and how far off Triton's default tiles are differs between them"
        )
    if cached >= len(bad) / 2:
        return said + (
            f"and in {cached} the weights are 0.5 to 1.5 times the last cache: a benchmark that repeats one layer "
            "reads them from there in part, a model of many layers does not"
        )
    return said + "and no single cause explains half of them"


# Splits against each other


@cache
def differing() -> list[Cell]:
    """The pairs that are apart on silicon."""
    return [cell for cell in read_cells() if cell.apart]


def said_of(cell: Cell, *, resident: bool = True) -> dict[LayerSplit, float]:
    """What the terms of the engine that was measured say of it, as the benchmark ran it or as a model does."""
    return predicted(cell, "engine", resident=resident)


def right_share(found: Sequence[Cell], *, resident: bool = True) -> float:
    """The share of them that is ranked rightly."""
    return sum(in_order(cell, said_of(cell, resident=resident)) for cell in found) / len(found)


def ranking_table() -> str:
    """By engine, model and load."""
    kinds: dict[str, Callable[[Cell], bool]] = {"all": lambda cell: True}
    kinds |= {model: lambda cell, model=model: cell.case.model == model for model in MODELS}
    kinds["balanced"] = lambda cell: cell.case.load == "balanced"
    kinds["skewed"] = lambda cell: cell.case.load != "balanced"
    found = differing()
    rows = []
    for name, kind in kinds.items():
        chosen = [cell for cell in found if kind(cell)]
        rows.append((name, f"{len(chosen):,}", *_shares(chosen)))
    return table(("pairs", "apart on silicon", "ranked rightly", *ENGINES.values()), rows)


def gpu_ranking_table() -> str:
    """By GPU and engine."""
    found = differing()
    rows = []
    for hardware in dict.fromkeys(cell.case.hardware for cell in found):
        rows.append((hardware, *_shares([cell for cell in found if cell.case.hardware == hardware])))
    return table(("GPU", "ranked rightly", *ENGINES.values()), rows)


def _shares(found: Sequence[Cell]) -> list[str]:
    """Of all, and of each engine's."""
    by_engine = ([cell for cell in found if cell.case.engine == engine] for engine in ENGINES)
    shares = [right_share(some) for some in (found, *by_engine)]
    return [f"{share:.1%}" if share >= RANKING_BAR else f"**{share:.1%}**" for share in shares]


def tied(cell: Cell) -> bool:
    """Whether the two are predicted too close to say which is faster."""
    said = said_of(cell)
    first, second = said[cell.case.intra], said[cell.case.inter]
    return max(first, second) <= (1 + TIE) * min(first, second)


def wrong_lines() -> list[str]:
    """What the wrongly ranked have in common, the largest cause first taken out."""
    wrong = [cell for cell in differing() if not in_order(cell, said_of(cell))]
    tie = [cell for cell in wrong if tied(cell)]
    rest = [cell for cell in wrong if not tied(cell)]
    few = sum(cell.tokens <= FEW for cell in rest)
    balanced = sum(cell.case.load == "balanced" for cell in tie)
    return [
        f"- {len(tie)}: called equal, no more than {TIE:.0%} apart, {balanced} of them under a balanced load: there "
        "both splits read and compute as much, and only how a kernel cuts a few whole experts, or slices of all, into "
        f"tiles tells them apart. Taking the slower one costs {_cost(tie)}.",
        f"- {len(rest)}: wrong outright, {few} of them at no more than {FEW} tokens, where a layer is short and fixed "
        f"times decide. Taking the slower one costs {_cost(rest)}.",
    ]


def _cost(found: Sequence[Cell]) -> str:
    return f"{median(cell.slower_by for cell in found):.0%} in the median" if found else "nothing"


def titles() -> list[str]:
    """The engines whose kernels the terms are of, with their versions."""
    found = (load_hardware(name).software[software].title for name in read("fit_errors") for software in ENGINES)
    return sorted(set(found))
