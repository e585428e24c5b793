"""How much is in flight at a time, and what a peak is."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pytest

from moejax._convert.items import ArrayPlan, Item
from moejax._convert.memory import PeakMemory, WorkerMemory, held_bytes, items_in_flight

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


def test_a_worker_uses_its_memory_again_and_shares_it_with_none() -> None:
    shapes = {"a": ((3,), "BF16"), "b": ((2, 5), "F32"), "c": ((), "F64")}
    plans = [ArrayPlan(source=key, target=key, shape=shape, dtype=dtype) for key, (shape, dtype) in shapes.items()]
    items = [Item(name=name, arrays=tuple(plans[:count]), files=()) for name, count in (("one", 3), ("two", 2))]
    memory = WorkerMemory(items)
    first, again = ([values for _, values in memory.arrays(item)] for item in items)
    assert [(values.shape, values.dtype) for values in first] == [(plan.shape, plan.numpy_dtype) for plan in plans]
    assert all(values.flags.aligned for values in first)
    assert not any(np.shares_memory(one, other) for one, other in combinations(first, 2))
    assert all(np.shares_memory(one, other) for one, other in zip(first, again, strict=False))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: [values for _, values in memory.arrays(items[0])]).result()
    assert not any(np.shares_memory(one, two) for one, two in zip(first, other, strict=True))
