"""What several reports show together: the goals on a CPU that they reach, and whether they repeat other reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moejax.bench.standings import OURS, Measurement, measurements
from scripts.report_tables import table

MODELS = ("random:186m", "random:742m")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How many times as fast as the strongest form of transformers, and as llama.cpp, moejax wants to be.

    part, batch_size, input_len: which measurement of a report it is about; None where it is any.
    """

    work: str
    part: str
    batch_size: int | None = None
    input_len: int | None = None
    transformers: float
    llama_cpp: float | None = None


GOALS = (
    Goal(work="decode, batch 1", part="decode", batch_size=1, transformers=1.6, llama_cpp=1.0),
    Goal(work="decode, batch 8", part="decode", batch_size=8, transformers=2.1, llama_cpp=1.25),
    Goal(work="decode, batch 16", part="decode", batch_size=16, transformers=2.3, llama_cpp=1.4),
    Goal(work="prefill of 512", part="prefill", batch_size=1, input_len=512, transformers=1.2, llama_cpp=2.2),
    Goal(work="prefill of 4,000", part="prefill", batch_size=1, input_len=4000, transformers=1.2),
    Goal(work="ragged requests", part="throughput", transformers=2.3),
)
# Not on this page, because no such machine has run it: said here, so that it is not forgotten.
ON_A_GPU = (
    "Mixtral 8x7B at full size on a GPU of the H200 class: 3 times the strongest form of transformers per token at "
    "batch 1, MBU of 75%, MFU of 50% in a prefill of 4,096"
)


def goals_table(reports: Sequence[dict[str, Any]]) -> str:
    """A row per model and goal: what was wanted, what was measured with its spread, met or missed."""
    rows = []
    for model in MODELS:
        compared = [one["compare"] for one in reports if "compare" in one and one["model"]["name"] == model]
        timed = [one for report in compared for one in measurements(report)]
        for goal in GOALS:
            results = [one for one in timed if is_about(goal, one)]
            ours = next((one for one in results if one.contender == OURS), None)
            goal_form, measured_form, form, verdict = _cells(strongest_of(results, "transformers"), goal.transformers)
            goal_cpp, measured_cpp, _, verdict_cpp = _cells(strongest_of(results, "llama.cpp"), goal.llama_cpp)
            work = f"{model.removeprefix('random:')}, {goal.work}"
            speed = f"{ours.samples['median_tokens_per_second']:,.0f}" if ours else ""
            rows.append((work, speed, form, goal_form, measured_form, verdict, goal_cpp, measured_cpp, verdict_cpp))
    header = (
        *("work", "moejax tok/s", "strongest transformers", "goal", "moejax / it (min to max)", "goal is"),
        *("goal", "moejax / llama.cpp (min to max)", "goal is"),
    )
    note = f"{ON_A_GPU}: **not measured**, no GPU has run it."
    return f"{table(header, rows)}\n{note}\n"


def is_about(goal: Goal, one: Measurement) -> bool:
    """Whether a goal is about this part of this work."""
    sizes = {"batch_size": goal.batch_size, "input_len": goal.input_len}
    return goal.part == one.part and all(one.of[name] == size for name, size in sizes.items() if size is not None)


def strongest_of(results: Sequence[Measurement], family: str) -> Measurement | None:
    """The system of a family against which moejax does worst, among those whose tokens are right."""
    right = [one for one in results if one.contender.startswith(family) and one.tokens != "WRONG"]
    return min(right, key=lambda one: one.samples["median_ratio"], default=None)


def _cells(best: Measurement | None, goal: float | None) -> tuple[str, str, str, str]:
    """The goal, the ratio with its spread, whose it is, and the verdict."""
    if goal is None:
        return "", "", "", ""
    if best is None:
        return f"{goal:g}", "", "", "not measured"
    ratio = best.samples["median_ratio"]
    met = ratio >= goal
    median = f"{ratio:.2f}"
    if not met and float(median) >= goal:
        median = f"{ratio:.4f}"  # missed by less than two digits show
    spread = f"{median} ({_range(best.samples['ratios'])})"
    return f"{goal:g}", spread, best.contender.removeprefix("transformers-"), "met" if met else "**missed**"


def spread_table(wanted: Mapping[str, dict[str, Any]], here: Mapping[str, dict[str, Any]]) -> str:
    """A row per model, work and system that both sets of reports have: both ratios with their spread, and whether they
    overlap. What was timed in one round has no spread to be within.
    """
    theirs, ours = ratios(wanted), ratios(here)
    rows: list[tuple[str, ...]] = []
    for key in [key for key in theirs if key in ours]:
        spread = len(theirs[key]) > 1
        overlap = min(theirs[key]) <= max(ours[key]) and min(ours[key]) <= max(theirs[key])
        verdict = "one round there" if not spread else "within" if overlap else "OUTSIDE"
        rows.append((*key, _range(theirs[key]), _range(ours[key]), verdict))
    stated = [row for row in rows if row[-1] != "one round there"]
    within = sum(row[-1] == "within" for row in stated)
    heading = f"{within} of {len(stated)} ratios, moejax / system, are within the spread of docs/benchmarks.md:\n\n"
    return heading + table(("model", "work", "system", "docs, min to max", "here, min to max", ""), rows)


def ratios(reports: Mapping[str, dict[str, Any]]) -> dict[tuple[str, str, str], list[float]]:
    """Of every comparison, by model, work and system: moejax's speed over the system's, of every round."""
    found = {}
    for report in [one for one in reports.values() if "compare" in one]:
        for one in [one for one in measurements(report["compare"]) if one.contender != OURS]:
            served = one.part == "throughput"
            work = f"{one.of['num_requests']} requests" if served else f"{one.of['name']}: {one.part}"
            found[report["model"]["name"], work, one.contender] = one.samples["ratios"]
    return found


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"
