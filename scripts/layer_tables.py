"""Tables of docs/predictions.md on MoE layers: how far off, which split is ranked first, and why where past a bar."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from statistics import median

from moejax.planning.hardware_file import load_hardware
from moejax.planning.silicon import ENGINES
from scripts.predicted_layers import MIXTRAL, MODELS, QWEN, Layer, Pair, off, pairs, predicted_layers, read
from scripts.report_tables import table

MEDIAN_BAR, WITHIN_BAR, RANKING_BAR = 0.10, 0.90, 0.95
WITHIN = 0.25  # of a layer
TIE = 0.05  # predicted so close, two splits are called equal
PRECISIONS = {"bfloat16": "bf16", "float8_e4m3fn": "fp8"}


def held_out() -> list[Layer]:
    """Layers of the model that the terms were not fitted to."""
    return [layer for layer in predicted_layers() if layer.model == QWEN.name]


def layers_table() -> str:
    """Per GPU, engine and dtype: errors of the fit, as scripts.fit_hardware reports them."""
    rows = []
    for hardware, engines in read("fit_errors").items():
        for software, dtypes in engines.items():
            for dtype, parts in dtypes.items():
                cells = (_median_within(parts.get(name)) for name in ("fitted", "other shape", "other load"))
                others = (f"{parts[name]['median']:.0%}" for name in ("products", "decode attention", "prompts"))
                rows.append((f"{hardware}, {ENGINES[software]}, {PRECISIONS[dtype]}", *cells, *others))
    header = ("layers of", "fitted", "another model's", "another load", "dense products", "decode attention", "prompts")
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
        count, middle, within = off([one for one in held_out() if name in ("all", one.software)])
        share = f"{within:.1%}" if within >= WITHIN_BAR else f"**{within:.1%}**"
        rows.append((ENGINES.get(name, name), f"{count:,}", f"{middle:.1%}", share))
    return table(("engine", "layers", "median error", "within 25%"), rows)


def sglang_elsewhere() -> float:
    """The share within 25% under SGLang, the A100 aside."""
    return off([one for one in held_out() if one.software == "sglang" and one.hardware != "a100-80gb"])[2]


def reported(part: str) -> list[dict[str, float]]:
    """What the fit reports of one part, by GPU, engine and dtype."""
    found = (kinds for engines in read("fit_errors").values() for by in engines.values() for kinds in by.values())
    return [kinds[part] for kinds in found if part in kinds]


def reported_within(part: str) -> float:
    """The share of all its rows that is within 25%."""
    found = reported(part)
    return sum(one["rows"] * one["within"] for one in found) / sum(one["rows"] for one in found)


def groups_of(layers: Iterable[Layer]) -> dict[tuple[str, str, str], list[Layer]]:
    """By GPU, engine and dtype."""
    found: dict[tuple[str, str, str], list[Layer]] = defaultdict(list)
    for layer in layers:
        found[layer.hardware, layer.software, layer.dtype].append(layer)
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


def layer_reason(bad: Sequence[Layer], engine: str) -> str:
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
def differing() -> list[Pair]:
    """The pairs that are apart on silicon."""
    return [pair for pair in pairs(predicted_layers()) if pair.differs]


def right_share(found: Sequence[Pair], times: str = "predicted") -> float:
    """The share of them that is ranked rightly."""
    return sum(pair.right(times) for pair in found) / len(found)


def ranking_table() -> str:
    """By engine, model and load."""
    kinds: dict[str, Callable[[Pair], bool]] = {"all": lambda pair: True}
    kinds |= {model.name: lambda pair, name=model.name: pair.tensor.model == name for model in MODELS}
    kinds["balanced"] = lambda pair: pair.tensor.load == "balanced"
    kinds["skewed"] = lambda pair: pair.tensor.load != "balanced"
    found = differing()
    rows = []
    for name, kind in kinds.items():
        chosen = [pair for pair in found if kind(pair)]
        by_engine = ([pair for pair in chosen if pair.tensor.software == engine] for engine in ENGINES)
        rows.append((name, f"{len(chosen):,}", _share(chosen), *map(_share, by_engine)))
    return table(("pairs", "apart on silicon", "ranked rightly", *(ENGINES[engine] for engine in ENGINES)), rows)


def gpu_ranking_table() -> str:
    """By GPU and engine."""
    found = differing()
    rows = []
    for hardware in dict.fromkeys(pair.tensor.hardware for pair in found):
        mine = [pair for pair in found if pair.tensor.hardware == hardware]
        by_engine = ([pair for pair in mine if pair.tensor.software == engine] for engine in ENGINES)
        rows.append((hardware, _share(mine), *map(_share, by_engine)))
    return table(("GPU", "ranked rightly", *(ENGINES[engine] for engine in ENGINES)), rows)


def _share(found: Sequence[Pair]) -> str:
    share = right_share(found)
    return f"{share:.1%}" if share >= RANKING_BAR else f"**{share:.1%}**"


def other_kernel(layer: Layer) -> bool:
    """Whether another kernel ran it than the one that the terms were fitted to."""
    return layer.kernel != read("fit_errors")[layer.hardware][layer.software][layer.dtype]["kernel"]


def tied(pair: Pair) -> bool:
    """Whether the two are predicted too close to say which is faster."""
    first, second = pair.tensor.predicted, pair.expert.predicted
    return max(first, second) <= (1 + TIE) * min(first, second)


def wrong_lines() -> list[str]:
    """What the wrongly ranked have in common, the largest cause first taken out."""
    wrong = [pair for pair in differing() if not pair.right()]
    other = [pair for pair in wrong if other_kernel(pair.tensor)]
    tie = [pair for pair in wrong if pair not in other and tied(pair)]
    rest = [pair for pair in wrong if pair not in other and pair not in tie]
    few = sum(pair.tensor.tokens <= 128 for pair in rest)
    where = sorted({f"{ENGINES[pair.tensor.software]} on {pair.tensor.hardware}" for pair in other})
    balanced = sum(pair.tensor.load == "balanced" for pair in tie)
    return [
        f"- {len(other)}: {', '.join(where) or 'nowhere'}, which runs {MIXTRAL.name} with another kernel than most "
        "shapes; the terms are of the latter.",
        f"- {len(tie)}: called equal, no more than {TIE:.0%} apart, {balanced} of them under a balanced load: there "
        "both splits read and compute as much, and only how a kernel cuts a few whole experts, or slices of all, into "
        f"tiles tells them apart. Taking the slower one costs {_cost(tie)}.",
        f"- {len(rest)}: wrong outright, {few} of them at no more than 128 tokens, where a layer is short and fixed "
        f"times decide. Taking the slower one costs {_cost(rest)}.",
    ]


def _cost(found: Sequence[Pair]) -> str:
    return f"{median(pair.cost for pair in found):.0%} in the median" if found else "nothing"


def titles() -> list[str]:
    """The engines whose kernels the terms are of, with their versions."""
    found = (load_hardware(name).software[software].title for name in read("fit_errors") for software in ENGINES)
    return sorted(set(found))
