"""How much is in flight at a time, and what a peak is."""

import threading
import time
from contextlib import ExitStack

import numpy as np

from convert.memory import Buffers, PeakMemory, held_bytes

MB = 1_000_000
WAIT_SECONDS = 60


def test_a_third_item_waits() -> None:
    buffers = Buffers(100 * MB, workers=3)
    events: list[str] = []

    def third() -> None:
        with buffers.taken():
            events.append("taken")

    with buffers.taken(), buffers.taken():
        waiting = threading.Thread(target=third)
        waiting.start()
        time.sleep(0.05)
        events.append("two were in flight")
    waiting.join()
    assert events == ["two were in flight", "taken"]


def test_more_of_small_items_are_in_flight() -> None:
    buffers = Buffers(MB, workers=5)
    with ExitStack() as stack:
        taken = [stack.enter_context(buffers.taken()) for _ in range(5)]
    assert {buffer.nbytes for buffer in taken} == {MB}


def test_memory_is_used_again() -> None:
    buffers = Buffers(100 * MB, workers=2)
    with buffers.taken() as first:
        pass
    with buffers.taken() as again, buffers.taken() as another:
        assert np.shares_memory(first, again) and not np.shares_memory(first, another)


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
