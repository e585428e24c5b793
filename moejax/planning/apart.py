"""Small texts beside the points of a picture, put where none hides another. Imports no matplotlib, whose objects it is
given."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

DPI = 110  # of pictures, at which the sizes of texts are measured
INCH = 72.0  # points
RADIUS = 4.0  # points around a marked one that a text leaves free
DISTANCES = tuple(range(11, 90, 6))  # points between a point and the middle of its text, the nearest first
DIRECTIONS = (45, -45, 135, -135, 90, -90, 0, 180)  # degrees, that are tried in turn
NEAR = DISTANCES[1]  # beyond, a line leads from the point to its text


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Annotations of one pair of axes, each of one of the points that are marked there."""

    axes: Any
    texts: Sequence[Any]
    points: Sequence[tuple[float, float]]


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, place: tuple[float, float], width: float, height: float) -> "_Box":
        return cls(place[0] - width / 2, place[1] - height / 2, place[0] + width / 2, place[1] + height / 2)

    def hides(self, other: "_Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top


def set_apart(figure: Any, marks: Marks) -> None:
    """Moves each text to the nearest place where it hides no other, no marked point, and nothing beside the axes."""
    figure.set_dpi(DPI)
    for text in marks.texts:
        text.set_in_layout(False)  # where it stands moves nothing else
    figure.draw_without_rendering()  # lays everything out
    to_pixels, room, pixels = marks.axes.transData.transform, marks.axes.get_window_extent(), DPI / INCH
    taken = [_Box.around(tuple(to_pixels(point)), *2 * (2 * RADIUS * pixels,)) for point in marks.points]
    for text in marks.texts:
        size, (x, y) = text.get_window_extent(), to_pixels(text.xy)
        places = [(x + right * pixels, y + up * pixels) for right, up in _offsets()]
        boxes = [_Box.around(place, size.width + 2, size.height + 2) for place in places]
        inside = [room.x0 <= box.left and box.right <= room.x1 and box.bottom >= room.y0 for box in boxes]
        hidden = [sum(map(box.hides, taken)) + (not within) for box, within in zip(boxes, inside, strict=True)]
        chosen = hidden.index(min(hidden))
        taken.append(boxes[chosen])
        _put(marks.axes, text, list(_offsets())[chosen])


def _offsets() -> Iterator[tuple[float, float]]:
    """Points to the right and up, the nearest first."""
    for distance in DISTANCES:
        for angle in DIRECTIONS:
            yield distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))


def _put(axes: Any, text: Any, offset: tuple[float, float]) -> None:
    text.set(position=offset, ha="center", va="center")
    if math.hypot(*offset) > NEAR:
        line = {"arrowstyle": "-", "color": "0.4", "linewidth": 0.6, "shrinkA": 5, "shrinkB": RADIUS}
        axes.annotate("", text.xy, xytext=offset, textcoords="offset points", arrowprops=line).set_in_layout(False)
