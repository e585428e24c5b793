"""Makes the page of a folder of benchmark reports, and its poster; with --docs, docs/ as well.

    python -m scripts.bench_page build/bench
    python -m scripts.bench_page build/bench --docs

The first writes build/bench/benchmarks.md and poster.svg. The second replaces docs/benchmarks, docs/benchmarks.md and
docs/poster.svg by what these reports say: `make bench-docs`. A section per report, with the command that made it;
nothing is left out or added. What surrounds them is docs/benchmarks_intro.md.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.bench_goals import goals_table
from scripts.bench_report import DOCS, PUBLISHED, circumstances, pictures, sections, write_json
from scripts.draw_poster import poster
from scripts.report_plots import draw_plots

INTRO = DOCS / "benchmarks_intro.md"
GOALS_HERE = "<!-- the table of goals -->\n"  # in the introduction

Reports = Mapping[str, dict[str, Any]]  # the name of a run -> its report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of reports, NAME/report.json")
    parser.add_argument("--docs", action="store_true", help="replace what docs/ has")
    args = parser.parse_args()
    reports = read_reports(args.folder)
    if not reports:
        parser.error(f"{args.folder} has no NAME/report.json; make some with: make bench")
    if args.docs:
        copy_reports(reports, DOCS / "benchmarks")
        write(reports, DOCS, "benchmarks/")
    else:
        write(reports, args.folder, "")


def read_reports(folder: Path) -> Reports:
    """The reports in a folder, by the names of theirs, in order."""
    paths = sorted(folder.glob("*/report.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def copy_reports(reports: Reports, folder: Path) -> None:
    """Replaces a folder by these reports and their plots."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, report in reports.items():
        (folder / name).mkdir(parents=True)
        write_json(folder / name, report)
        draw_plots(folder / name, report)


def write(reports: Reports, folder: Path, below: str) -> None:
    """Writes page and poster to a folder, in which the reports lie at `below`."""
    (folder / "benchmarks.md").write_text(page(INTRO.read_text(encoding="utf-8"), reports, below), encoding="utf-8")
    (folder / "poster.svg").write_text(poster(list(reports.values())), encoding="utf-8")
    print(f"wrote {folder / 'benchmarks.md'} and {folder / 'poster.svg'}")


def page(intro: str, reports: Reports, below: str) -> str:
    """The whole page."""
    assert GOALS_HERE in intro, "the introduction says where the goals stand"
    parts = [intro.replace(GOALS_HERE, goals_table(list(reports.values())))]
    for name, report in reports.items():
        parts += [f"## {name.replace('_', ' ')}\n", circumstances(report), *sections(report, level=3)]
        parts += [pictures(report, f"{below}{name}/")] if pictures(report, "") else []
    return "\n".join([*parts, PUBLISHED.read_text(encoding="utf-8")])


if __name__ == "__main__":
    main()
