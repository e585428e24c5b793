"""Makes docs/benchmarks.md from the reports of several benchmark runs, and prints it.

    python scripts/bench_page.py docs/benchmarks/*.json > docs/benchmarks.md

A section per report, with the command that made it; nothing is left out or added. What surrounds them is docs/
benchmarks_intro.md.
"""

import json
import sys
from pathlib import Path
from typing import Any

from moejax.bench.published import published_table
from moejax.bench.report import circumstances, sections

INTRO = Path(__file__).resolve().parents[1] / "docs" / "benchmarks_intro.md"


def main() -> None:
    reports = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    if not reports:
        sys.exit("give the report.json files of moejax bench, as in docs/benchmarks/*.json")
    print(page(INTRO.read_text(encoding="utf-8"), reports), end="")


def page(intro: str, reports: list[dict[str, Any]]) -> str:
    """The whole page."""
    parts = [intro]
    for number, report in enumerate(reports, 1):
        parts += [f"## Run {number}: {report['model']['name']}\n", circumstances(report), *sections(report, level=3)]
    parts += ["## Published figures of others\n", published_table()]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
