"""What the project set out to reach on a CPU, and which of it the reports show: a table for docs/benchmarks.md."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from moejax.bench.report_tables import OURS, table

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
    Goal(work="decode, batch 1", part="decode", batch_size=1, transformers=1.2, llama_cpp=0.6),
    Goal(work="decode, batch 8", part="decode", batch_size=8, transformers=1.1, llama_cpp=1.0),
    Goal(work="decode, batch 16", part="decode", batch_size=16, transformers=1.1, llama_cpp=1.0),
    Goal(work="prefill of 512", part="prefill", batch_size=1, input_len=512, transformers=0.8, llama_cpp=1.5),
    Goal(work="ragged requests", part="throughput", transformers=2.0),
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
        for goal in GOALS:
            results = [one for report in compared for one in measured(report, goal)]
            rates = [rate for name, rate, _ in results if name == OURS]
            goal_form, measured_form, form, verdict = _cells(strongest_of(results, "transformers"), goal.transformers)
            goal_cpp, measured_cpp, _, verdict_cpp = _cells(strongest_of(results, "llama.cpp"), goal.llama_cpp)
            work = f"{model.removeprefix('random:')}, {goal.work}"
            speed = f"{rates[0]['median_tokens_per_second']:,.0f}" if rates else ""
            rows.append(
                (work, speed, form, goal_form, measured_form, verdict, goal_cpp, measured_cpp, verdict_cpp),
            )
    header = (
        *("work", "moejax tok/s", "strongest transformers", "goal", "moejax / it (min to max)", "goal is"),
        *("goal", "moejax / llama.cpp (min to max)", "goal is"),
    )
    note = f"The next goal beside llama.cpp at batch 1 is 1.0. {ON_A_GPU}: **not measured**, no GPU has run it."
    return f"{table(header, rows)}\n{note}\n"


def measured(compared: dict[str, Any], goal: Goal) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Contender, its samples and the verdict on its tokens, for each system that did a goal's work."""
    if goal.part == "throughput":
        for one in (compared["throughput"] or {"results": []})["results"]:
            yield one["contender"], one, one["tokens"]
        return
    for work in compared["works"]:
        if goal.batch_size == work["batch_size"] and goal.input_len in (None, work["input_len"]):
            for one in work["results"]:
                if goal.part in one:
                    yield one["contender"], one[goal.part], one["tokens"]


def strongest_of(results: Sequence[tuple[str, dict[str, Any], str]], family: str) -> tuple[str, dict[str, Any]] | None:
    """The system of a family against which moejax does worst, among those whose tokens are right."""
    right = [(name, one) for name, one, tokens in results if name.startswith(family) and tokens != "WRONG"]
    return min(right, key=lambda pair: pair[1]["median_ratio"], default=None)


def _cells(best: tuple[str, dict[str, Any]] | None, goal: float | None) -> tuple[str, str, str, str]:
    """The goal, the ratio with its spread, whose it is, and the verdict."""
    if goal is None:
        return "", "", "", ""
    if best is None:
        return f"{goal:g}", "", "", "not measured"
    name, one = best
    met = one["median_ratio"] >= goal
    median = f"{one['median_ratio']:.2f}"
    if not met and float(median) >= goal:
        median = f"{one['median_ratio']:.4f}"  # missed by less than two digits show
    spread = f"{median} ({min(one['ratios']):.2f} to {max(one['ratios']):.2f})"
    return f"{goal:g}", spread, name.removeprefix("transformers-"), "met" if met else "**missed**"
