"""How much memory there is: on this machine, and what a driver, the kernel and a container say."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from moejax._sharding import DeviceMemory, device_memory, memory
from tests.messages import refuses

GB = 10**9


def test_this_machine() -> None:
    found = device_memory()
    assert found.device
    assert found.total_bytes >= found.free_bytes > 0
    assert found.total_bytes > GB // 4, "less than any machine that JAX starts on"
    assert found.total_bytes < 2**60, "no limit of a container was taken for memory"


def accelerator(stats: dict[str, int] | None, process: int = 0) -> Any:
    """A GPU with these statistics."""
    return SimpleNamespace(platform="gpu", device_kind="H200", process_index=process, memory_stats=lambda: stats)


def test_an_accelerator_has_the_pool_that_its_driver_lends() -> None:
    found = device_memory(
        [accelerator({"bytes_limit": 100 * GB, "bytes_in_use": 30 * GB, "peak_bytes_in_use": 50 * GB})]
    )
    assert found == DeviceMemory(device="H200", total_bytes=100 * GB, free_bytes=70 * GB)


def test_an_accelerator_that_nobody_uses() -> None:
    assert device_memory([accelerator({"bytes_limit": 5 * GB})]).free_bytes == 5 * GB


def test_without_devices_it_is_the_first_one_here(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [accelerator({"bytes_limit": size * GB}) for size in (7, 5)]
    monkeypatch.setattr(jax, "local_devices", lambda: here)
    assert device_memory().free_bytes == 7 * GB


def test_the_fullest_of_several_counts() -> None:
    """Every device gets as much of a model as the others, so the one with the least room decides."""
    stats = [{"bytes_limit": 100 * GB, "bytes_in_use": used * GB} for used in (10, 60, 20)]
    found = device_memory([accelerator(one) for one in stats])
    assert found == DeviceMemory(device="H200", total_bytes=100 * GB, free_bytes=40 * GB)


def test_devices_of_other_processes_do_not_count() -> None:
    """Their memory cannot be asked for from here."""
    devices = [accelerator(None, process=1), accelerator({"bytes_limit": 9 * GB}), accelerator({}, process=2)]
    assert device_memory(devices).free_bytes == 9 * GB


def test_simulated_devices_share_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"memory.max": 8 * GB // 10, "memory.current": 0}
    monkeypatch.setattr(memory, "_cgroup", lambda name: figures[name])
    found = device_memory(jax.devices()[:4])
    assert (found.total_bytes, found.free_bytes) == (2 * GB // 10, 2 * GB // 10)


@pytest.mark.parametrize("stats", [None, {}, {"bytes_in_use": 1}])
def test_an_accelerator_that_says_nothing(stats: dict[str, int] | None) -> None:
    with refuses(RuntimeError, "(H200)"):
        device_memory([accelerator(stats)])


def test_what_the_kernel_says(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text(
        "MemTotal:       24570812 kB\nMemFree:  100 kB\nMemAvailable:   20446304 kB\nHugePages_Total:       3\n"
    )
    found = memory._read_meminfo(path)
    assert (found["MemTotal"], found["MemAvailable"]) == (24570812 * 1024, 20446304 * 1024)


def test_a_system_without_meminfo(tmp_path: Path) -> None:
    found = memory._read_meminfo(tmp_path / "none")
    assert found["MemTotal"] == found["MemAvailable"] > GB // 4


@pytest.mark.parametrize(
    ("name", "content", "value"),
    [
        ("memory.max", "2000000000\n", 2 * GB),
        ("memory.max", "max\n", 2**63),
        ("memory.max", None, 2**63),
        ("memory.current", "5\n", 5),
        ("memory.current", None, 0),
    ],
)
def test_figures_of_a_container(tmp_path: Path, name: str, content: str | None, value: int) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    assert memory._cgroup(name, tmp_path) == value


def test_a_container_has_no_more_than_its_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"memory.max": GB // 8, "memory.current": GB // 16}
    monkeypatch.setattr(memory, "_cgroup", lambda name: figures[name])
    found = device_memory()
    assert (found.total_bytes, found.free_bytes) == (GB // 8, GB // 8 - GB // 16)
