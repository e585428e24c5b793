"""Timing a split: what is refused, how deep a model is timed, and what is counted as a step."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moejax._sharding import DeviceMemory, MeshConfig
from moejax.measuring import measured
from moejax.moe.split import Split, make_rules
from moejax.planning.compare import compare_meshes, make_plan
from moejax.planning.footprint import footprint
from moejax.planning.workload import Workload
from tests.messages import refuses
from tests.moejax.measuring.test_compiled import CONFIG

WORKLOAD = Workload(batch_size=2, input_len=16, context=64, dtype="float32")
ONE = Split(mesh=MeshConfig(), dispatch="replicated", remark=None)


def memory(free: int) -> DeviceMemory:
    return DeviceMemory(device="a device", total_bytes=2 * free, free_bytes=free)


def test_simulated_devices_and_other_counts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with refuses(ValueError, "--measure", "8 CPU devices", "simulated"):
        measured.check_measurable(8, [WORKLOAD])
    monkeypatch.setattr(measured.jax, "device_count", lambda: 1)
    with refuses(ValueError, "--measure", "8 devices", "--devices 1"):
        measured.check_measurable(8, [WORKLOAD])
    with refuses(ValueError, "64", "got 65"):
        measured.check_measurable(1, [WORKLOAD, replace(WORKLOAD, batch_size=65)])
    with refuses(ValueError, "64", "--context 0"):
        measured.check_measurable(1, [replace(WORKLOAD, context=0)])
    measured.check_measurable(1, [WORKLOAD])


def test_as_many_layers_as_fit() -> None:
    rules = make_rules(CONFIG, ONE.mesh, ONE.dispatch)

    def needed(layers: int) -> int:
        return footprint(replace(CONFIG, num_layers=layers), rules, WORKLOAD).total

    for layers in (1, 3, 6):
        free = int(needed(layers) / measured.ROOM) + 1
        assert measured.fitting_layers(CONFIG, ONE, WORKLOAD, memory(free)) == layers
    assert measured.fitting_layers(CONFIG, ONE, WORKLOAD, memory(10 * needed(6))) == 6
    with refuses(ValueError, "data=1,expert=1,tensor=1", "0.0 GB"):
        measured.fitting_layers(CONFIG, ONE, WORKLOAD, memory(needed(1) // 2))


def test_a_step_is_typical_of_the_calls_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of 1, 4, 4, 8 and 16 steps that take 9, 1, 2, 1 and 1 seconds a step: the first one warms up."""

    class Run:
        """Feeds, and then makes those calls."""

        def __init__(self) -> None:
            self.steps, self.times = 0, SimpleNamespace(decode=0.0, prefill=3.0)

        def tokens(self) -> Iterator[None]:
            yield  # the first tokens, from the prefill
            for steps, seconds in ((1, 9.0), (4, 1.0), (4, 2.0), (8, 1.0), (16, 1.0), (16, 77.0)):
                self.steps += steps
                self.times.decode += steps * seconds
                yield

    monkeypatch.setattr(measured, "_run", lambda *_, **__: Run())
    model: Any = None
    assert measured._step_seconds(model, WORKLOAD, enough=1e9) == [9.0, 1.0, 2.0, 1.0, 1.0, 77.0]
    assert measured._step_seconds(model, WORKLOAD, enough=22.0) == [9.0, 1.0, 2.0, 1.0]
    times = measured.ModelTimes(model, WORKLOAD)
    times.measure()
    assert times.decode_seconds == pytest.approx(4 / 3) and times.prefill_seconds == 3.0


def test_outliers_do_not_count_and_both_speeds_of_a_machine_do() -> None:
    assert measured.typical([1.0, 1.0, 2.0, 1.0, 2.0, 2.0, 99.0, 0.1]) == pytest.approx(1.5)


def test_a_model_that_does_not_fit_is_timed_with_fewer_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(CONFIG, "cpu")
    rows = compare_meshes(CONFIG, 1, "cpu", batch_size=2, input_len=16, context=64, dtype="float32")
    free = footprint(replace(CONFIG, num_layers=2), make_rules(CONFIG, ONE.mesh, ONE.dispatch), WORKLOAD).total
    monkeypatch.setattr(measured, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(measured, "WARM_SECONDS", 0.01)
    monkeypatch.setattr(measured, "device_memory", lambda devices: memory(int(free / measured.ROOM) + 1))
    told: list[str] = []
    (row,) = measured.measure_rows("some.json", plan, rows, told=told.append)
    found = row.measured
    assert found is not None and told == ["one device, batch 2"]
    assert (found.layers, found.reduced) == (2, True)
    assert found.decode_seconds > 0 and found.prefill_seconds > 0
    assert row.decode is not None and found.predicted_decode_seconds < row.decode.seconds / 2
    assert found.decode_error == pytest.approx(found.predicted_decode_seconds / found.decode_seconds - 1)
    assert replace(row, measured=None) == rows[0]


def test_checkpoints_have_weights_of_their_own(tmp_path: Path) -> None:
    assert not measured.is_random("demo") and not measured.is_random(str(tmp_path))
    assert all(map(measured.is_random, ("mixtral-8x7b", "random:mixtral-8x7b", "my/config.json")))
