"""Which calls of the decode loop there are, which one is taken, and for which slots. Nothing is computed."""

import pytest

from moejax.decoding.shapes import SlotParts, StepShape
from moejax.serving.shapes import ServedShapes


def make(batch: int, *, length: int = 1024, splits: int = 1, reads_all: bool = False) -> ServedShapes:
    parts = SlotParts(batch, splits)
    return ServedShapes(parts=parts, length=length, chunk=128, short=32, most=4, logprobs=20, reads_all=reads_all)


@pytest.mark.parametrize(
    ("shapes", "steps"),
    [
        (make(16), [(1, 256), (1, 1024), (4, 256), (16, 1024)]),
        (make(16, reads_all=True), [(1, 256), (1, 1024), (4, 256), (16, 256), (16, 1024)]),
        (make(16, length=4096), [(1, 256), (1, 1024), (1, 4096), (4, 256), (4, 1024), (16, 4096)]),
        (make(1), [(1, 1024)]),
        (make(3, length=128), [(1, 128), (3, 128)]),
        (make(64, length=512, splits=2), [(2, 256), (2, 512), (8, 256), (64, 512)]),
        (make(8, length=256, splits=8), [(8, 256)]),
    ],
    ids=["16 slots", "attention reads all", "longer", "one slot", "odd", "two parts", "a slot in each part"],
)
def test_calls(shapes: ServedShapes, steps: list[tuple[int, int]]) -> None:
    assert shapes.steps == steps


@pytest.mark.parametrize(
    ("occupied", "furthest", "expected"),
    [
        ([9], 1, (1, 256)),
        ([9], 256, (1, 256)),
        ([9], 257, (1, 1024)),
        ([0, 15], 10, (4, 256)),
        ([0, 15], 257, (16, 1024)),
        ([0, 1, 2, 3, 4], 10, (16, 1024)),
    ],
)
def test_the_least_call_is_taken(occupied: list[int], furthest: int, expected: tuple[int, int]) -> None:
    assert make(16).step(occupied, furthest) == StepShape(*expected)


def test_the_fullest_part_of_the_batch_decides() -> None:
    shapes = make(64, splits=2)
    assert shapes.step([0, 32], 1).slots == 2
    assert shapes.step([0, 1], 1).slots == 8


def test_each_part_of_the_batch_gives_as_many_slots() -> None:
    shapes = make(16, splits=2).parts
    assert shapes.choose([3], 2) == [3, 8]
    assert shapes.choose([6, 9, 15], 8) == [0, 1, 2, 6, 8, 9, 10, 15]
    assert shapes.choose([], 16) == list(range(16))
