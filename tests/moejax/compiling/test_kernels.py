from pathlib import Path

import pytest

from tests.moejax.compiling.made import facts


@pytest.mark.parametrize(("grid", "running"), [("[28, 8, 1]", 2), ("[28, 1, 1]", 1)])
def test_no_more_is_in_flight_than_the_grid_has_blocks_for(grid: str, running: int, tmp_path: Path) -> None:
    kernel = facts(tmp_path, grid=grid)["kernels"]["few_tokens_gate_up"]
    assert kernel["blocks"] == 2
    assert kernel["in_flight"] == running * kernel["threads"] * kernel["flight"] == running * 128 * 96


def test_xlas_own_kernels_are_told_in_sum(tmp_path: Path) -> None:
    found = facts(tmp_path)
    assert set(found["kernels"]) == {"few_tokens_gate_up"}
    assert found["xla_kernels"] == {"distinct": 2, "registers": 72, "spilled": 0}
