"""What utilisation is a part of is measured where weights lie: in huge pages, on a CPU that has them."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import pytest

from moejax._sharding import device_memory
from moejax.bench import roofline
from moejax.measuring import calibration
from moejax.runtime.huge_pages import in_huge_pages, why_none
from tests.huge_memory import Refusals

pytestmark = pytest.mark.skipif(why_none() is not None, reason=f"no huge pages here: {why_none()}")
NBYTES = 2**26  # more than malloc keeps when it is freed: what XLA makes of it is new memory


def share(array: jax.Array) -> float:
    huge, total = in_huge_pages([array])
    assert huge is not None and total == NBYTES
    return huge / total


def collapsed(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> set[int]:
    """Where the arrays lie that the module has had moved; how far Linux moves them is not its doing."""
    moved: set[int] = set()
    collapse = module.collapse

    def noted(array: jax.Array) -> None:
        moved.add(array.unsafe_buffer_pointer())
        collapse(array)

    monkeypatch.setattr(module, "collapse", noted)
    return moved


def test_the_roofline_is_measured_in_huge_pages(monkeypatch: pytest.MonkeyPatch, refusals: Refusals) -> None:
    moved = collapsed(monkeypatch, roofline)
    monkeypatch.setattr(roofline, "ARRAY_BYTES", {"cpu": NBYTES})
    monkeypatch.setattr(roofline, "MATRIX_SIDE", {"cpu": 2})
    memory = roofline.Memory()
    assert share(memory._read) == 1 or refusals.happened()
    assert memory._changed.unsafe_buffer_pointer() in moved
    # A second for everything: what is counted is seen.
    monkeypatch.setattr(roofline, "_seconds", lambda function, argument: 1.0)
    monkeypatch.setattr(memory, "_seconds_of_change", lambda: 1.0)
    rates = roofline.measure_roofline("float32", memory)
    assert (rates.read_bytes_per_second, rates.copy_bytes_per_second) == (NBYTES, 2 * NBYTES)
    assert memory.read_rate() == NBYTES


def test_the_bandwidth_of_a_hardware_file_is_measured_in_huge_pages(
    monkeypatch: pytest.MonkeyPatch, refusals: Refusals
) -> None:
    moved = collapsed(monkeypatch, calibration)
    monkeypatch.setattr(calibration, "COPIED_BYTES", NBYTES)
    monkeypatch.setattr(calibration, "LARGEST_COPY", NBYTES)
    arrays = []
    jit = jax.jit

    def jitted(function: Callable[..., jax.Array], **settings: Any) -> Callable[..., jax.Array]:
        def called(source: jax.Array, target: jax.Array) -> jax.Array:
            arrays.append((share(source), target.unsafe_buffer_pointer()))
            return compiled(source, target)

        compiled = jit(function, **settings)
        return called

    monkeypatch.setattr(calibration.jax, "jit", jitted)
    assert device_memory().free_bytes > 8 * NBYTES
    assert calibration.copy_bandwidth(jax.devices()[0]) > 0
    assert {source for source, _ in arrays} == {1} or refusals.happened()
    assert {target for _, target in arrays} == moved
