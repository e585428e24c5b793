"""How much is in flight at a time, and what a peak is."""

import time

import numpy as np
import pytest

from convert.memory import PeakMemory, held_bytes, items_in_flight

MB = 1_000_000
WAIT_SECONDS = 60


@pytest.mark.parametrize(
    ("item_bytes", "workers", "expected"), [(100 * MB, 3, 2), (100 * MB, 1, 1), (MB, 5, 5), (20 * MB, 5, 3), (0, 4, 4)]
)
def test_two_items_are_in_flight_or_more_small_ones(item_bytes: int, workers: int, expected: int) -> None:
    assert items_in_flight(item_bytes, workers) == expected


def test_peak_is_what_was_held_in_between() -> None:
    before = held_bytes()
    with PeakMemory() as peak:
        held = np.ones(200 * MB, np.uint8)
        until = time.monotonic() + WAIT_SECONDS
        while peak.bytes - before < 190 * MB:  # it is looked at from another thread
            assert time.monotonic() < until, "nobody looked"
            time.sleep(0.01)
        del held
    assert held_bytes() - before < 100 * MB
    assert peak.bytes - before <= 260 * MB
