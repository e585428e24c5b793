"""Whether ratios that were measured here are those of another set of reports, within the spread of both."""

from collections.abc import Iterator, Mapping
from typing import Any

from moejax.bench.report_tables import OURS, table

Ratios = dict[tuple[str, str, str], list[float]]  # model, work, system -> moejax's speed over its, of every round


def spread_table(wanted: Mapping[str, dict[str, Any]], here: Mapping[str, dict[str, Any]]) -> str:
    """A row per model, work and system that both have: both ratios with their spread, and whether they overlap.

    What was timed in one round has no spread to be within.
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


def ratios(reports: Mapping[str, dict[str, Any]]) -> Ratios:
    """Of every comparison in these reports."""
    return {key: value for report in reports.values() if "compare" in report for key, value in _of_report(report)}


def _of_report(report: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], list[float]]]:
    model, compared = report["model"]["name"], report["compare"]
    for work in compared["works"]:
        for one in work["results"]:
            for part in ("prefill", "decode"):
                if part in one and one["contender"] != OURS:
                    yield (model, f"{work['name']}: {part}", one["contender"]), one[part]["ratios"]
    for one in (compared["throughput"] or {"results": []})["results"]:
        if one["contender"] != OURS:
            yield (model, f"{compared['throughput']['num_requests']} requests", one["contender"]), one["ratios"]


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"
