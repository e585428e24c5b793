"""How much is in flight at a time, and what a peak is."""

import threading
import time

import numpy as np

from convert.memory import Buffers, PeakMemory, held_bytes

MB = 1_000_000


def test_a_third_item_waits() -> None:
    buffers = Buffers(100 * MB)
    events: list[str] = []

    def third() -> None:
        with buffers.taken(100 * MB):
            events.append("taken")

    with buffers.taken(100 * MB), buffers.taken(100 * MB):
        waiting = threading.Thread(target=third)
        waiting.start()
        time.sleep(0.05)
        events.append("two were in flight")
    waiting.join()
    assert events == ["two were in flight", "taken"]


def test_one_item_is_let_through_however_large() -> None:
    with Buffers(1).taken(100 * MB) as buffer:
        assert buffer.nbytes == 100 * MB


def test_memory_is_used_again_and_never_more_than_allowed() -> None:
    buffers = Buffers(100 * MB)
    with buffers.taken(80 * MB) as first:
        first[:] = 1
    with buffers.taken(70 * MB) as again:
        assert np.shares_memory(first, again)
    with buffers.taken(90 * MB), buffers.taken(100 * MB):
        kept = sum(buffer.size for buffer in buffers._free)
    assert kept == 0, "a buffer that nobody uses is kept beside 190 MB of 200 that are in use"


def test_peak_is_what_was_held_in_between() -> None:
    before = held_bytes()
    with PeakMemory() as peak:
        held = np.ones(200 * MB, np.uint8)
        time.sleep(0.1)
        del held
    assert 190 * MB <= peak.bytes - before <= 260 * MB
