"""docs/benchmarks.md, its plots and docs/poster.svg are what the scripts make of the reports beside them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from scripts.bench_goals import GOALS, goals_table, spread_table
from scripts.bench_page import INTRO, page, read_reports
from scripts.bench_report import DOCS
from scripts.draw_poster import poster
from scripts.report_plots import digest, plan_plots
from tests.messages import says

REPORTS = read_reports(DOCS / "benchmarks")
COMPARED = next(one for one in REPORTS.values() if "compare" in one)


def test_the_page_is_made_of_the_reports() -> None:
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == page(
        INTRO.read_text(encoding="utf-8"), REPORTS, "benchmarks/"
    )


def test_the_plots_are_of_these_reports_and_small() -> None:
    drawn = {path for path in (DOCS / "benchmarks").glob("*/*") if path.name != "report.json"}
    wanted = {DOCS / "benchmarks" / name / plot.file for name, one in REPORTS.items() for plot in plan_plots(one)}
    assert drawn == wanted and drawn
    for path in drawn:
        picture = path.read_bytes()
        assert digest(REPORTS[path.parent.name]).encode() in picture, f"{path} was drawn from another report"
        assert len(picture) < 100_000


def test_every_result_says_where_it_is_from() -> None:
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    for report in REPORTS.values():
        assert report["command"] in text and report["date"] in text and report["machine"]["processor"] in text
    assert "NOT MEASURED BY US" in text


def test_the_poster_is_drawn_from_the_reports() -> None:
    assert (DOCS / "poster.svg").read_text(encoding="utf-8") == poster(list(REPORTS.values()))


def test_the_poster_calls_wrong_tokens_wrong_and_says_what_it_lacks() -> None:
    report = copy.deepcopy(COMPARED)
    report.pop("strategies", None)
    report["compare"]["works"][0]["results"][1]["tokens"] = "WRONG"
    drawn = poster([report])
    assert "WRONG TOKENS" in drawn
    says(drawn, "strategies")


def samples(ratio: float) -> dict[str, Any]:
    return {"ratios": [ratio, ratio + 0.2], "median_ratio": ratio + 0.1, "median_tokens_per_second": 9.0}


def decoding(**systems: tuple[float, str]) -> dict[str, Any]:
    """A report of decoding at batch 1; each system has a ratio, and a verdict on its tokens."""
    results = [
        {"contender": name, "decode": samples(ratio), "tokens": tokens} for name, (ratio, tokens) in systems.items()
    ]
    work = {"name": "b1 pp64 tg8", "batch_size": 1, "input_len": 64, "results": results}
    return {"model": {"name": "random:186m"}, "compare": {"works": [work], "throughput": None}}


def test_goals_are_held_against_the_strongest_form_whose_tokens_are_right() -> None:
    right = "same tokens"
    systems = {"transformers": (1.5, right), "transformers-fast": (1.0, right), "transformers-wrong": (0.1, "WRONG")}
    table = goals_table([decoding(moejax=(1.0, right), **systems, **{"llama.cpp": (0.95, "right up to rounding")})])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert rows[2] == [
        *("186m, decode, batch 1", "9", "fast", "1.6", "1.10 (1.00 to 1.20)", "**missed**"),
        *("1", "1.05 (0.95 to 1.15)", "met"),
    ]
    assert rows[3][2:6] == ["", "2.1", "", "not measured"] and len(rows) == 2 + 2 * len(GOALS)


@pytest.mark.parametrize(("shift", "verdict"), [(0.15, "within"), (0.3, "OUTSIDE"), (-0.3, "OUTSIDE")])
def test_the_spread_of_two_runs_overlaps_or_not(shift: float, verdict: str) -> None:
    wanted = {"a": decoding(moejax=(1.0, ""), peer=(2.0, ""), other=(1.0, ""))}
    table = spread_table(wanted, {"b": decoding(moejax=(1.0, ""), peer=(2.0 + shift, ""))})
    assert f"{int(verdict == 'within')} of 1 ratios" in table
    assert [cell.strip() for cell in table.splitlines()[-1].split("|")][2:4] == ["b1 pp64 tg8: decode", "peer"]
    assert verdict in table


def test_reports_are_read_by_their_names(tmp_path: Path) -> None:
    for name in ("2_b", "1_a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps({"name": name}))
    assert list(read_reports(tmp_path)) == ["1_a", "2_b"]
