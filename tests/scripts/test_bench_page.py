"""docs/benchmarks.md and docs/poster.svg are what the scripts make of the reports beside them."""

import json
from pathlib import Path

from scripts.bench_page import INTRO, page
from scripts.draw_poster import poster

DOCS = Path(__file__).resolve().parents[2] / "docs"
REPORTS = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((DOCS / "benchmarks").glob("*.json"))]


def test_the_page_is_made_of_the_reports() -> None:
    assert REPORTS
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == page(INTRO.read_text(encoding="utf-8"), REPORTS)


def test_every_result_says_where_it_is_from() -> None:
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    for report in REPORTS:
        assert report["command"] in text and report["date"] in text and report["machine"]["processor"] in text
    assert "NOT MEASURED BY US" in text


def test_the_poster_is_drawn_from_the_reports() -> None:
    assert (DOCS / "poster.svg").read_text(encoding="utf-8") == poster(REPORTS)


def test_the_poster_calls_wrong_tokens_wrong_and_says_what_it_lacks() -> None:
    report = json.loads(json.dumps(next(one for one in REPORTS if "compare" in one)))
    report.pop("strategies", None)
    report["compare"]["works"][0]["results"][1]["tokens"] = "WRONG"
    drawn = poster([report])
    assert "WRONG TOKENS" in drawn and "no report of strategies was given" in drawn
