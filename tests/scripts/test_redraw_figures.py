"""Every figure is drawn again from what is committed, and becomes what is in docs/."""

from pathlib import Path

import pytest

from scripts.bench_page import read_reports
from scripts.bench_report import DOCS
from scripts.redraw_figures import FIGURES, REPORTS
from scripts.report_plots import digest

OF_A_BROWSER = {"pictures/page.png", "pictures/page_dark.png"}  # scripts/picture_page.py


@pytest.mark.parametrize("name", ["poster", "pictures"])
def test_drawings_are_those_of_docs(name: str, tmp_path: Path) -> None:
    files = FIGURES[name](tmp_path)
    assert files
    for path in files:
        assert path.read_bytes() == (DOCS / path.relative_to(tmp_path)).read_bytes()


def test_plots_of_benchmarks_are_drawn_of_the_committed_reports(tmp_path: Path) -> None:
    reports = read_reports(REPORTS)
    for path in FIGURES["benchmarks"](tmp_path):
        assert digest(reports[path.parent.name]).encode() in path.read_bytes()
        assert (DOCS / path.relative_to(tmp_path)).is_file()


def test_nothing_else_is_in_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("draw", "draw_plots"):
        monkeypatch.setattr(f"scripts.redraw_figures.{module}", lambda *_: None)
    drawn = {str(path.relative_to(tmp_path)) for redraw in FIGURES.values() for path in redraw(tmp_path)}
    there = {str(path.relative_to(DOCS)) for kind in ("png", "svg") for path in DOCS.rglob(f"*.{kind}")}
    assert drawn == there - OF_A_BROWSER
