"""Conversion is not slow against a plain copy, with its defaults; the promise itself is shown by the benchmark."""

import statistics
from pathlib import Path

import pytest

from scripts.bench_convert import CONFIG, COPY, TO_HF, TO_ORBAX, measure, write_random_checkpoint

# A layer of 0.57 GB: two experts of 176 MB, half the size of Mixtral 8x7B's, attention and embeddings.
FIELDS = {**CONFIG, "num_local_experts": 2, "intermediate_size": 7168, "vocab_size": 8000}
ROUNDS = 3
# The promise is 0.5 (scripts/bench_convert.py, 3 GB). Of 0.57 GB the start, the end and the first touch of memory are a
# larger part: 0.5 to 0.8 was measured. Other processes slow down now the one, now the other, so the best conversion is
# compared with the median copy: a machine that is busy for a while does not fail this, code that is slow always does.
AT_LEAST = 0.4


@pytest.mark.slow
def test_not_slow_against_a_plain_copy(tmp_path: Path) -> None:
    nbytes = write_random_checkpoint(tmp_path / "hf", 0.5, FIELDS)
    assert 0.5e9 < nbytes < 0.6e9
    speeds = measure(tmp_path / "hf", tmp_path, ROUNDS, verify=True).speeds
    best = {name: max(speeds[name]) / statistics.median(speeds[COPY]) for name in (TO_ORBAX, TO_HF)}
    assert min(best.values()) >= AT_LEAST, speeds
