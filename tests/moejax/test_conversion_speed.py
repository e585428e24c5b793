"""Conversion takes little of the processor's time, whatever else runs.

How fast it is beside a plain copy is a matter of the disk and of a machine with nothing else to do:
scripts/bench_convert.py, whose numbers are in docs/conversion.md.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moejax
from scripts.bench_convert import CONFIG, write_random_checkpoint

# A layer of 0.57 GB: two experts of 176 MB, half the size of Mixtral 8x7B's, attention and embeddings.
FIELDS = {**CONFIG, "num_local_experts": 2, "intermediate_size": 7168, "vocab_size": 8000}
# Times the seconds of SHA-256 of the same bytes, which towards Orbax is part of the work. Measured: 2.8 and 1.5.
# More than twice as much is another way of working, such as compressing.
MOST_TO_ORBAX, MOST_TO_HF = 5.6, 3.0


def processor_seconds(work: Callable[[], Any]) -> float:
    """Of all threads of this process, in the quicker of two runs: it may share a core's caches, but not its time."""
    found = []
    for _ in range(2):
        before = os.times()
        work()
        after = os.times()
        found.append(after.user - before.user + after.system - before.system)
    return min(found)


@pytest.mark.slow
def test_little_of_the_processors_time(tmp_path: Path) -> None:
    hf, orbax, target = (tmp_path / name for name in ("hf", "orbax", "target"))
    assert 0.5e9 < write_random_checkpoint(hf, 0.5, FIELDS) < 0.6e9
    moejax.convert(hf, orbax)  # imports and starts everything, too

    def convert(source: Path, **options: Any) -> None:
        moejax.convert(source, target, verify=False, **options)
        shutil.rmtree(target)

    raw = [file.read_bytes() for file in hf.glob("*.safetensors")]
    hashing = processor_seconds(lambda: [hashlib.sha256(one).digest() for one in raw])
    del raw
    assert processor_seconds(lambda: convert(hf)) <= MOST_TO_ORBAX * hashing
    assert processor_seconds(lambda: convert(orbax, shard_size="2GB")) <= MOST_TO_HF * hashing
