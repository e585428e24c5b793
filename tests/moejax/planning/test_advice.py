"""What to ask for where nothing fits: each flag alone has to be enough."""

from dataclasses import replace

import pytest

from moejax import compare_meshes
from moejax.planning.advice import nearest, what_fits
from moejax.planning.compare import make_plan


@pytest.mark.parametrize(
    ("model", "devices", "hardware", "dtype", "batch", "expected"),
    [
        ("mixtral-8x7b", 1, "h100-sxm", "bfloat16", 1, ["--devices 2", "--hardware h200"]),
        ("mixtral-8x7b", 2, "v100-32gb", "float32", 1, ["--devices 8", "--hardware h200"]),
        ("mixtral-8x7b", 4, "v100-32gb", "float32", 1, ["--dtype float16", "--devices 8", "--hardware h100-sxm"]),
        ("mixtral-8x7b", 2, "h100-sxm", "bfloat16", 1024, ["--batch-size 128", "--devices 8"]),
        ("mixtral-8x22b", 1, "cpu", "bfloat16", 1, ["--devices 16"]),
    ],
)
def test_each_flag_makes_it_fit(
    model: str, devices: int, hardware: str, dtype: str, batch: int, expected: list[str]
) -> None:
    rows = compare_meshes(model, devices, hardware, batch_size=batch, dtype=dtype)
    assert not any(row.fits for row in rows)
    lacking = nearest(rows)
    assert lacking and lacking.over_bytes == min(row.over_bytes for row in rows if row.footprint)
    found = what_fits(make_plan(model, hardware), devices, "all", rows)
    assert found == expected
    for flag in found:
        name, _, value = flag.removeprefix("--").partition(" ")
        asked = {"devices": devices, "hardware": hardware, "dtype": dtype, "batch_size": batch}
        asked |= {name.replace("-", "_"): int(value) if value.isdigit() else value}
        assert any(row.fits for row in compare_meshes(model, **asked))


def test_devices_that_nothing_connects_are_not_proposed() -> None:
    plan = make_plan("mixtral-8x22b", "h100-sxm")
    lonely = replace(plan.hardware, link=None, network=None, devices_per_node=1)
    rows = compare_meshes("mixtral-8x22b", 1, "h100-sxm", batch_size=1)
    assert what_fits(plan, 1, "all", rows) == ["--devices 4"]
    assert what_fits(replace(plan, hardware=lonely), 1, "all", rows) == []
