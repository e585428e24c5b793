"""Calibration: its arithmetic on made-up times, and that what it writes is a hardware file."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from moejax.checkpoint import open_checkpoint
from moejax.measuring import calibration, measured, speeds
from moejax.planning.compare import compare_meshes
from moejax.planning.hardware import Curve, Link, Operation
from moejax.planning.hardware_file import load_hardware
from moejax.planning.hardware_toml import hardware_toml
from moejax.planning.workload import Workload
from tests.messages import refuses

SMALL_SPEEDS = {
    "RUNS": 1,
    "ENOUGH_SECONDS": 0.0,
    "ROWS": (1,),
    "GROUPS": (2,),
    "BYTES": 2**14,
    "WIDTH": 64,
    "EXPERT_WIDTH": 64,
    "EXPERTS": 2,
    "KEY_HEADS": 1,
    "HEAD_WIDTH": 16,
    "SLOTS": 64,
    "PROMPT": 16,
}


def test_simulated_devices_are_refused() -> None:
    with refuses(ValueError, "8 CPU devices", "simulated"):
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


class MadeUpTimes:
    """Of steps and prefills that take what a roofline says and then 50 us a layer, 20 us per expert, 6 us per token."""

    layer, expert, token = 50e-6, 20e-6, 6e-6

    def __init__(self, model: None, workload: Workload) -> None:
        layers, batch, length = calibration.LAYERED.num_layers, workload.batch_size, workload.input_len
        (row,) = compare_meshes(
            calibration.LAYERED, 1, "cpu", batch_size=batch, input_len=length, context=workload.context
        )
        assert row.decode and row.prefill
        read = 8 * (1 - 0.75**batch)
        self.decode_seconds = row.decode.seconds + layers * self.seconds(read, batch)
        self.prefill_seconds = row.prefill.seconds + layers * self.seconds(8, length)

    def seconds(self, experts: float, tokens: int) -> float:
        return self.layer + experts * self.expert + tokens * self.token


class Faster(MadeUpTimes):
    """Than predicted with every token more."""

    token = -6e-6


def test_layers_experts_and_tokens_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "random_model", lambda config, split, dtype: None)
    monkeypatch.setattr(calibration, "ModelTimes", MadeUpTimes)
    found = calibration.TimedLayers().overheads(load_hardware("cpu"))
    assert found == pytest.approx((50e-6, 20e-6, 6e-6), rel=1e-3)


def test_no_part_takes_less_than_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "random_model", lambda config, split, dtype: None)
    monkeypatch.setattr(calibration, "ModelTimes", Faster)
    assert min(calibration.TimedLayers().overheads(load_hardware("cpu"))) == 0


def test_overheads_are_part_of_a_step() -> None:
    hardware = load_hardware("cpu")
    slower = dataclasses.replace(hardware, layer_overhead=50e-6, expert_overhead=20e-6, token_overhead=6e-6)
    (ideal,), (row,) = (compare_meshes("demo", 1, kind, batch_size=1, input_len=64) for kind in (hardware, slower))
    assert ideal.decode and row.decode and row.prefill
    assert ideal.decode.overhead_seconds == 0
    assert row.decode.overhead_seconds == pytest.approx(4 * (50e-6 + 2 * 20e-6 + 6e-6))
    assert row.prefill.overhead_seconds == pytest.approx(4 * (50e-6 + 8 * 20e-6 + 64 * 6e-6), rel=1e-4)
    assert row.decode.seconds == pytest.approx(ideal.decode.seconds + row.decode.overhead_seconds)


def test_parts_run_at_the_speed_of_their_operation() -> None:
    """Demo: 4 heads over 2 key/value heads; 2 experts of 8 at batch 1 with a row each, 4 x 2 / 8 rows at more."""
    ideal = load_hardware("cpu")
    config = open_checkpoint("demo").config
    curves: dict[Operation, Curve] = {
        "project": {1: 1e3, 64: 1e4},
        "experts": {1: 1e5, 2: 4e5},
        "attend_step": {2: 1e6},
        "attend_prompt": {2: 1e7},
    }
    slow = dataclasses.replace(ideal, bandwidth=1e24, speeds={"bfloat16": curves})
    (row,) = compare_meshes(config, 1, slow, batch_size=1, input_len=64, context=64)
    d, heads, keys, width = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
    projections = config.num_layers * 2 * d * (2 * (heads + keys) * width + config.num_experts)
    experts = config.num_layers * 2 * 6 * d * config.expert_dim
    scores, head = config.num_layers * 4 * 64 * heads * width, 2 * d * config.vocab_size
    assert row.decode is not None and row.prefill is not None
    expected = (projections + head) / 1e3 + experts / 1e5 + scores / 1e6
    assert row.decode.compute_seconds == row.decode.seconds == pytest.approx(expected)
    expected = 64 * projections / 1e4 + head / 1e3 + 64 * experts / 4e5 + 64 * scores * 65 / 128 / 1e7
    assert row.prefill.compute_seconds == pytest.approx(expected)


def test_a_measured_speed_has_reading_in_it() -> None:
    """What the bandwidth would add to it is time that was measured already; where nothing was measured, it counts."""
    ideal = dataclasses.replace(load_hardware("cpu"), bandwidth=1e3)
    speeds: dict[Operation, Curve] = {
        "project": {1: 1e6},
        "experts": {1: 1e6},
        "attend_step": {2: 1e6},
        "attend_prompt": {2: 1e6},
    }
    measured = dataclasses.replace(ideal, speeds={"bfloat16": speeds})
    (slow,), (row,) = (
        compare_meshes("demo", 1, kind, batch_size=1, input_len=64, context=64) for kind in (ideal, measured)
    )
    assert row.decode and slow.decode
    assert row.decode.seconds == pytest.approx(row.decode.flops / 1e6)
    assert slow.decode.seconds >= (slow.decode.weight_bytes + slow.decode.kv_bytes) / 1e3 > row.decode.seconds


def test_all_reduces_run_over_the_devices_that_are_asked_for() -> None:
    assert all(calibration._all_reduce_seconds(jax.devices()[:count], 64) > 0 for count in (2, 8))


def test_a_calibrated_file_can_be_compared_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On one of the simulated devices, with small sizes: the times mean nothing, the file does."""
    monkeypatch.setattr(calibration, "check_real_devices", lambda purpose: None)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(calibration, "COPIED_BYTES", 2**20)
    monkeypatch.setattr(calibration, "LARGEST_COPY", 2**22)
    monkeypatch.setattr(calibration, "LARGEST_PRODUCT", 512)
    monkeypatch.setattr(calibration, "LAYERED", dataclasses.replace(calibration.LAYERED, embed_dim=64, num_layers=2))
    monkeypatch.setattr(calibration, "RUNS", 1)
    monkeypatch.setattr(calibration, "ROUNDS", 2)
    monkeypatch.setattr(calibration, "DTYPES", ("bfloat16",))
    monkeypatch.setattr(measured, "WARM_SECONDS", 0.01)
    monkeypatch.setattr(measured, "ROUND_SECONDS", 0.01)
    for name, value in SMALL_SPEEDS.items():
        monkeypatch.setattr(speeds, name, value)
    told: list[str] = []
    hardware = calibration.calibrate("mine", told=told.append)
    path = tmp_path / "mine.toml"
    path.write_text(hardware_toml(hardware))
    assert load_hardware(path) == hardware
    figures = [hardware.bandwidth, *hardware.matrix_rate.values()]
    figures += [rate for curve in hardware.speeds["bfloat16"].values() for rate in curve.values()]
    assert all(figure == float(f"{figure:.4g}") for figure in figures)
    assert hardware.link is None and "nothing to measure" in hardware.sources["link"]
    assert set(hardware.matrix_rate) == set(hardware.speeds) == {"bfloat16"}
    assert {name: set(curve) for name, curve in hardware.speeds["bfloat16"].items()} == {
        "project": {1},
        "experts": {1},
        "attend_step": {2},
        "attend_prompt": {2},
    }
    assert len(told) == 5 and hardware.kinds == (jax.devices()[0].device_kind.lower(),)
    (row,) = compare_meshes("demo", 1, path, batch_size=1, input_len=32, context=64)
    assert row.decode is not None and row.decode.seconds > 0
    with refuses(ValueError, "mine", "[link]", "2 devices"):
        compare_meshes("demo", 2, path, batch_size=1, input_len=32, context=64)
