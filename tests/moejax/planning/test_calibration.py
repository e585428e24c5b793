"""Calibration: its arithmetic on made-up times, and that what it writes is a hardware file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from moejax.planning import calibration
from moejax.planning.compare import compare_meshes
from moejax.planning.hardware import Link, hardware_toml, load_hardware


def test_simulated_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="calibrate times real devices, but the 8 CPU devices here are simulated"):
        calibration.calibrate()


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_link_is_found_from_the_times_of_its_rings(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    true = Link(bandwidth=40e9, latency=2e-6, launch=0.0 if count == 2 else 9e-6)

    def seconds(devices: Sequence[Any], elements: int) -> float:
        around = len(devices) - 1
        return true.launch + 2 * around * true.latency + 2 * around / len(devices) * 4 * elements / true.bandwidth

    monkeypatch.setattr(calibration, "_all_reduce_seconds", seconds)
    found = calibration.measure_link(range(count))
    assert found.bandwidth == pytest.approx(true.bandwidth)
    assert found.latency == pytest.approx(true.latency, rel=0.01)  # the small one's own bytes
    assert found.launch == pytest.approx(true.launch, rel=0.01)


def test_all_reduces_run_over_the_devices_that_are_asked_for() -> None:
    assert all(calibration._all_reduce_seconds(jax.devices()[:count], 64) > 0 for count in (2, 8))


def test_a_calibrated_file_can_be_compared_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On one of the simulated devices, with small sizes: the times mean nothing, the file does."""
    monkeypatch.setattr(calibration, "check_real_devices", lambda purpose: None)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(calibration, "COPIED_BYTES", 2**20)
    monkeypatch.setattr(calibration, "LARGEST_COPY", 2**22)
    monkeypatch.setattr(calibration, "LARGEST_PRODUCT", 512)
    monkeypatch.setattr(calibration, "DEPTHS", (1, 2))
    monkeypatch.setattr(calibration, "RUNS", 1)
    told: list[str] = []
    hardware = calibration.calibrate("mine", told=told.append)
    path = tmp_path / "mine.toml"
    path.write_text(hardware_toml(hardware))
    assert load_hardware(path) == hardware
    assert hardware.link is None and "nothing to measure" in hardware.sources["link"]
    assert set(hardware.matrix_rate) == {"bfloat16", "float16", "float32"}
    assert len(told) == 5 and hardware.kinds == (jax.devices()[0].device_kind.lower(),)
    (row,) = compare_meshes("demo", 1, path, batch_size=1, input_len=32, context=64)
    assert row.decode is not None and row.decode.total > 0
    with pytest.raises(ValueError, match=r"hardware mine has no \[link\]: 2 devices need one; add it to the file"):
        compare_meshes("demo", 2, path, batch_size=1, input_len=32, context=64)
