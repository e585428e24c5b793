"""Memory that converting takes, measured from outside on a checkpoint that is much larger than what is allowed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.bench_convert import write_random_checkpoint
from tests.moejax.test_loading_memory import INTERVAL_SECONDS, held_bytes

GB, MB = 10**9, 10**6
# One layer of Mixtral 8x7B and its embeddings: the largest item, an expert, is 352 MB.
EXPERT_BYTES = 3 * 4096 * 14336 * 2


def convert_measured(source: Path, target: Path) -> tuple[dict, int]:
    """Runs `moejax convert` with its defaults; returns what it reports, and the most that it held."""
    command = [sys.executable, "-m", "moejax", "convert", str(source), str(target), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, held_bytes(process.pid))
        time.sleep(INTERVAL_SECONDS)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out), peak


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    nbytes = write_random_checkpoint(tmp_path / "hf", 3.0)
    assert nbytes >= 3 * GB
    for source, target in (("hf", "orbax"), ("orbax", "back")):
        report, peak = convert_measured(tmp_path / source, tmp_path / target)
        assert report["checked"] and report["bytes"] == nbytes
        assert report["largest_item_bytes"] == EXPERT_BYTES
        assert EXPERT_BYTES < peak <= 3 * EXPERT_BYTES + 600 * MB == report["memory_bound_bytes"], (source, peak)
        # What the command prints about itself is what was seen from outside; who looks late may miss a buffer.
        assert abs(report["peak_memory_bytes"] - peak) < EXPERT_BYTES
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (tmp_path / "hf" / name).unlink()
