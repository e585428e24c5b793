"""The benchmark of conversion measures what it says it does; how fast it is stands in docs/conversion.md."""

import dataclasses
from pathlib import Path

from scripts.bench_convert import COPY, MIXTRAL, TO_HF, TO_ORBAX, measure, write_random_checkpoint

SMALL = dataclasses.replace(MIXTRAL, num_experts=2, expert_dim=64, embed_dim=256, vocab_size=300)
ROUNDS = 2


def test_every_round_converts_there_and_back(tmp_path: Path) -> None:
    nbytes = write_random_checkpoint(tmp_path / "hf", 0.0, SMALL)
    assert nbytes < 10**7
    found = measure(tmp_path / "hf", tmp_path, ROUNDS, verify=True)
    assert found.speeds.keys() == {COPY, TO_ORBAX, TO_HF}
    assert all(len(speeds) == ROUNDS and min(speeds) > 0 for speeds in found.speeds.values())
    assert 0 < found.peak_bytes and found.bound_bytes > 600_000_000 and found.check_seconds > 0
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "orbax"}, "every round removes what it wrote"
