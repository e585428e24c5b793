"""Numbers beside the points of a picture: none hides another, or a point, however close the points lie."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from moejax.planning.apart import DPI, Marks, set_apart


def marked(points: list[tuple[float, float]]) -> tuple[Any, Marks]:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set(xlim=(1, 1024), ylim=(0, 100), ylabel="a label")
    texts = [
        axes.annotate(f"{number + 10}", point, xytext=(4, 5), textcoords="offset points", fontsize=8)
        for number, point in enumerate(points)
    ]
    return figure, Marks(axes=axes, texts=texts, points=points)


CLOSE = {
    "a row": [(float(2 ** (3 + 0.1 * i)), 50.0) for i in range(12)],
    "a heap": [(8.0 + 0.05 * i, 50.0 + i) for i in range(9)],
    "the corners": [(1.0, 0.0), (1.0, 100.0), (1024.0, 0.0), (1024.0, 100.0), (1000.0, 99.0)],
    "alone": [(8.0, 50.0)],
    "none": [],
}


@pytest.mark.parametrize("points", CLOSE.values(), ids=CLOSE)
def test_no_number_hides_another_or_a_point(points: list[tuple[float, float]]) -> None:
    figure, marks = marked(points)
    set_apart(figure, marks)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in marks.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    for point in points:
        assert not any(box.contains(*marks.axes.transData.transform(point)) for box in boxes)
    for text, box in zip(marks.texts, boxes, strict=True):
        middle = np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2
        away = np.hypot(*(middle - marks.axes.transData.transform(text.xy)))
        assert away < 90 * DPI / 72  # near its own


def test_close_numbers_hide_each_other_before() -> None:
    figure, marks = marked(CLOSE["a row"])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in marks.texts]
    assert any(one.overlaps(other) for one, other in combinations(boxes, 2))
