"""Draws every figure of docs/ again from the JSON beside it: nothing is timed, and no other system is installed.

    python -m scripts.redraw_figures
    python -m scripts.redraw_figures --only poster pictures --to build/figures

Needs matplotlib (the extra `bench` has it), but for the poster and the pictures. What is drawn from what:

poster: docs/poster.svg, of docs/benchmarks/*/report.json.  benchmarks: the plots beside these reports.
intra_vs_inter: its plots, of docs/intra_vs_inter/layers.csv.gz.  pictures: those of docs/parallelism.md, of the code.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.bench_page import read_reports
from scripts.bench_report import DOCS
from scripts.draw_parallelism import pictures
from scripts.draw_poster import poster
from scripts.intra_vs_inter_plots import draw, panels
from scripts.layer_exchanges import hardware_file
from scripts.measured_layers import FOLDER, read_cells
from scripts.report_plots import draw_plots, plan_plots
from scripts.split_tables import GPUS

REPORTS = DOCS / "benchmarks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES), help="these alone")
    parser.add_argument("--to", type=Path, default=DOCS, help="another folder than docs/, laid out as it is")
    args = parser.parse_args()
    for name in args.only:
        files = FIGURES[name](args.to)
        print(f"{name}: {', '.join(str(path.relative_to(args.to)) for path in files)}", flush=True)


def redraw_poster(folder: Path) -> list[Path]:
    """The poster, of the committed reports."""
    return [_write(folder / "poster.svg", poster(list(read_reports(REPORTS).values())))]


def redraw_benchmarks(folder: Path) -> list[Path]:
    """The plots of each committed report."""
    files = []
    for name, report in read_reports(REPORTS).items():
        place = folder / "benchmarks" / name
        place.mkdir(parents=True, exist_ok=True)
        draw_plots(place, report)
        files += [place / plot.file for plot in plan_plots(report)]
    return files


def redraw_intra_vs_inter(folder: Path) -> list[Path]:
    """The plots of measured layers, one for each kind of GPU."""
    place, cells = folder / FOLDER.name, read_cells()
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"{hardware}.png" for hardware in GPUS]
    for path in files:
        draw(path, hardware_file(path.stem).title, panels(path.stem, cells))
    return files


def redraw_pictures(folder: Path) -> list[Path]:
    """The pictures of docs/parallelism.md."""
    return [_write(folder / "pictures" / name, picture) for name, picture in pictures().items()]


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


FIGURES: Mapping[str, Callable[[Path], list[Path]]] = {
    "poster": redraw_poster,
    "benchmarks": redraw_benchmarks,
    "intra_vs_inter": redraw_intra_vs_inter,
    "pictures": redraw_pictures,
}


if __name__ == "__main__":
    main()
