"""SiliconTables of docs/predictions.md on whole steps and generations: how far off, and why where past a bar."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from statistics import median
from typing import Any

from moejax.planning.silicon import ENGINES
from moejax.runtime.buckets import PREFILL_TOKENS
from scripts.measured_layers import MIXTRAL, MODELS, LayerSplit
from scripts.predicted_layers import predicted_layers
from scripts.predicted_steps import (
    PHASES,
    Estimate,
    configurations,
    decode_rate,
    estimates,
    generation_rate,
    whole_batch,
)
from scripts.predictions_data import read
from scripts.report_tables import table

GENERATION_BAR, STEP_BAR = 0.10, 0.15
ASKED = ("a100-80gb", "h200")  # where whole steps have a bar
SOFTWARE = ("sglang", "trtllm", "vllm", "moejax", "ideal")
NAMES = {**ENGINES, "moejax": "moejax", "ideal": "roofline"}


@cache
def generation_errors() -> dict[str, list[tuple[str, int, float, float]]]:
    """By software: dtype, devices, tokens per second measured and predicted."""
    given = read("published")["gpt-fast"]
    return {
        software: [
            (dtype, int(devices), rate, generation_rate(given, software, dtype, int(devices)))
            for dtype, by_devices in given["tokens_per_second"].items()
            for devices, rate in by_devices.items()
        ]
        for software in SOFTWARE
    }


def closest() -> tuple[str, float]:
    """The software whose worst error is smallest, and that error."""
    worst = {
        name: max(abs(predicted / rate - 1) for *_, rate, predicted in rows)
        for name, rows in generation_errors().items()
    }
    name = min(worst, key=lambda one: worst[one])
    return name, worst[name]


def generation_table() -> str:
    """gpt-fast's numbers and TensorRT-LLM's one, the software closest to gpt-fast first."""
    found, order = generation_errors(), [closest()[0]]
    order += [name for name in SOFTWARE if name not in order]
    rows = []
    for at, (dtype, devices, rate, _) in enumerate(found[order[0]]):
        name = f"{dtype.replace('bfloat16', 'bf16')}, {LayerSplit(tensor=devices).label}"
        rows.append(_generation_row(name, rate, [found[software][at][3] for software in order]))
    other = read("published")["tensorrt-llm"]
    rates = [decode_rate(other, software) for software in order]
    rows.append(_generation_row("TensorRT-LLM: int8, one device", other["tokens_per_second"], rates))
    return table(("weights, split", "measured", "predicted", *(NAMES[name] for name in order)), rows)


def _generation_row(name: str, rate: float, predicted: Sequence[float]) -> list[str]:
    errors = [one / rate - 1 for one in predicted]
    cells = [f"**{error:+.1%}**" if abs(error) > GENERATION_BAR else f"{error:+.1%}" for error in errors]
    return [name, f"{rate:.2f}", f"{predicted[0]:.1f}", *cells]


def batch_table() -> str:
    """vLLM's whole batches."""
    rows = []
    for given in read("published")["vllm"]:
        for batch, seconds in given["seconds"].items():
            one = whole_batch(given, int(batch))
            parts = (f"{one.prefill:.3f}", f"{one.step * 1e3:.2f}")
            cells = (batch, f"{seconds:.3f}", f"{one.total:.3f}", f"{one.total / seconds - 1:+.1%}")
            rows.append((f"{given['devices']} {given['hardware']}", *cells, *parts))
    header = ("GPUs", "batch", "measured, s", "predicted, s", "error", "of it prefill, s", "a step, ms")
    return table(header, rows)


def missing_per_step(at: int) -> float:
    """Milliseconds per output token by which the smallest batch took longer than predicted."""
    given = read("published")["vllm"][at]
    batch, seconds = next(iter(given["seconds"].items()))
    return (seconds - whole_batch(given, int(batch)).total) / given["output_len"] * 1e3


def batch_errors(at: int) -> str:
    """Of one set of them, from the highest."""
    given = read("published")["vllm"][at]
    found = [whole_batch(given, int(batch)).total / seconds - 1 for batch, seconds in given["seconds"].items()]
    return f"{max(found):+.0%} to {min(found):+.0%}"


def asked(phase: str) -> list[Estimate]:
    """Those that the bar is for."""
    return [one for one in estimates() if one.phase == phase and one.hardware in ASKED]


def elsewhere() -> list[Estimate]:
    """Those that no bar is for."""
    return [one for one in estimates() if one.hardware not in ASKED]


def most_off(software: str) -> float:
    """The largest error of one piece of software over gpt-fast's generations."""
    return max(abs(predicted / rate - 1) for *_, rate, predicted in generation_errors()[software])


def within_bar(found: Iterable[Estimate], times: str) -> int:
    """How many are within the bar."""
    return sum(abs(one.error(times)) <= STEP_BAR for one in found)


def steps_table() -> str:
    """By GPU and engine: median error, how many within the bar, the worst."""
    groups: dict[tuple[str, str], dict[str, list[Estimate]]] = defaultdict(lambda: defaultdict(list))
    for one in estimates():
        groups[one.hardware, one.software][one.phase].append(one)
    rows = []
    for (hardware, software), phases in groups.items():
        cells = [_errors(phases[phase], times) for phase in PHASES for times in ("fitted", "measured")]
        rows.append((f"{hardware}, {NAMES[software]}", str(len(phases["decode"])), *cells))
    header = [f"{phase}, {times}" for phase in PHASES for times in ("fitted", "measured")]
    return table(("GPU, engine", "rows", *header), rows)


def worst_fitted(phase: str) -> Estimate:
    """Of those that the bar is for, the one whose fitted time is furthest off."""
    return max(asked(phase), key=lambda one: abs(one.error("fitted")))


def whole_expert_misses() -> tuple[int, int]:
    """Fitted times that are past the bar: how many are of devices that hold whole experts, and how many in all."""
    missed = [one for phase in PHASES for one in asked(phase) if abs(one.error("fitted")) > STEP_BAR]
    return sum(one.split.tensor == 1 for one in missed), len(missed)


def rest_of_step() -> float:
    """What is long besides experts and attention in the decode step of gpt-fast's closest software over 8 devices."""
    key = ("a100-80gb", closest()[0], LayerSplit(tensor=8), 1)
    found = [one for one in asked("decode") if (one.hardware, one.software, one.split, one.batch) == key]
    return found[0].error("measured")


def against_measured() -> float:
    """The largest error of AIConfigurator's own decode steps against gpt-fast's."""
    rates = read("published")["gpt-fast"]["tokens_per_second"]["bfloat16"]
    steps = {row["tensor"]: row["decode_ms"] for row in configurations() if _as_published(row)}
    return max(abs(rate * steps[int(devices)] * 1e-3 - 1) for devices, rate in rates.items())


def _as_published(row: dict[str, Any]) -> bool:
    return (row["hardware"], row["software"], row["expert"], row["batch"]) == ("a100-80gb", "vllm", 1, 1)


def whole_experts() -> float:
    """By how much longer than predicted one whole expert of Mixtral takes SGLang on an H200, the median."""
    found = [
        layer.seconds / layer.predicted - 1
        for layer in predicted_layers()
        if (layer.case.hardware, layer.case.engine, layer.case.model) == ("h200", "sglang", MIXTRAL)
        and (layer.case.load, layer.split) == ("balanced", LayerSplit(expert=8))
    ]
    return median(found)


def roofline_errors() -> str:
    """Of gpt-fast's numbers, least to most."""
    errors = [predicted / rate - 1 for *_, rate, predicted in generation_errors()["ideal"]]
    return f"{min(errors):.0%} to {max(errors):.0%}"


def _errors(found: Sequence[Estimate], times: str) -> str:
    errors = [abs(one.error(times)) for one in found]
    return f"{median(errors):.1%} ({within_bar(found, times)}), {max(errors):.0%}"


def where(hardware: str, software: str, split: LayerSplit) -> str:
    """What a row is of."""
    return f"{hardware}, {NAMES[software]}, {split.label}"


def named(one: Estimate) -> str:
    """Which estimate it is."""
    return f"{where(one.hardware, one.software, one.split)}, batch {one.batch}"


def misses_table(phase: str, times: str) -> str:
    """Every estimate past the bar on the GPUs that have one, by split, with the part that is off most."""
    groups: dict[tuple[str, str, LayerSplit], list[Estimate]] = defaultdict(list)
    for one in asked(phase):
        if abs(one.error(times)) > STEP_BAR:
            groups[one.hardware, one.software, one.split].append(one)
    rows = [
        (
            where(hardware, software, split),
            ", ".join(f"{one.batch}: {one.error(times):+.0%}" for one in found),
            "; ".join(dict.fromkeys(step_reason(one, times) for one in found)),
        )
        for (hardware, software, split), found in groups.items()
    ]
    return table(("GPU, engine, split", "batch: error", "because of"), rows)


def step_reason(one: Estimate, times: str) -> str:
    """The part that is off most, and what is known of it."""
    parts = {
        "experts": one.experts,
        "attention": one.fitted - one.measured - one.experts,
        "rest": one.measured - one.other,
    }
    several = f"prompts fed in calls of {PREFILL_TOKENS:,} tokens"
    rest = several if one.calls > 1 else "dense products, collectives and norms"
    if times == "measured":
        return rest
    largest = max(parts, key=lambda name: abs(parts[name]))
    if largest != "experts":
        return {"attention": "attention", "rest": rest}[largest]
    config = MODELS[MIXTRAL]
    held, width = config.num_experts // one.split.expert, config.expert_dim // one.split.tensor
    shape = f"{held} expert{'s' if held > 1 else ''} of {width:,} columns" + (", not tuned" if one.untuned else "")
    return f"{shape}: {'less' if one.experts > 0 else 'longer'}"
