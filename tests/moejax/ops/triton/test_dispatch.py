"""Which implementation is taken, and what is said when one cannot be."""

import logging
from typing import get_args

import jax
import pytest

from moejax.ops.table import resolve_backend
from moejax.ops.triton import kernels as dispatch
from moejax.ops.triton.kernels import KERNELS, KernelsName, kernels
from moejax.runtime.platform import A100, H100, Device, current_device, tracing_for
from tests.messages import refuses

V100 = Device(platform="gpu", kind="Tesla V100-SXM2-16GB", capability=(7, 0))
MI300 = Device(platform="gpu", kind="AMD Instinct MI300X")
CPU = Device(platform="cpu", kind="cpu")
NEEDED = ("NVIDIA GPU", "8.0")


def test_every_name_has_a_row() -> None:
    assert set(KERNELS) == set(get_args(KernelsName))


@pytest.mark.parametrize(
    ("device", "name"), [(H100, "triton"), (A100, "triton"), (V100, "reference"), (CPU, "reference")]
)
def test_none_is_the_first_that_runs(device: Device, name: KernelsName) -> None:
    with tracing_for(device):
        assert kernels() is KERNELS[name]


@pytest.mark.parametrize(
    ("device", "facts"),
    [
        (V100, (*NEEDED, "Tesla V100-SXM2-16GB", "7.0")),
        (MI300, (*NEEDED, "AMD Instinct MI300X (gpu)")),
        (CPU, (*NEEDED, "cpu (cpu)")),
    ],
)
def test_an_explicit_name_says_why_it_cannot(device: Device, facts: tuple[str, ...]) -> None:
    with tracing_for(device):
        for name in ("triton", "tokamax"):
            with refuses(NotImplementedError, repr(name), *facts):
                kernels(name)
        for backend in ("pallas", "tokamax"):
            with refuses(ValueError, repr(backend), *facts, "expert_backend='auto'"):
                resolve_backend(backend, device.platform)


def test_tokamax_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.grouped_tokamax, "PACKAGE", "a_package_that_is_not_there")
    with tracing_for(H100):
        with refuses(NotImplementedError, "'tokamax'", "pip install tokamax"):
            kernels("tokamax")
        with refuses(ValueError, "'tokamax'", "pip install tokamax", "expert_backend='auto'"):
            resolve_backend("tokamax", "gpu")


def test_tokamax_is_taken_by_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.grouped_tokamax, "PACKAGE", "math")  # some package that is there
    with tracing_for(H100):
        assert resolve_backend("tokamax", "gpu") == "tokamax"
        assert resolve_backend("auto", "gpu") == "pallas"
        assert kernels() is KERNELS["triton"]


def test_unknown_name_lists_the_known_ones() -> None:
    with refuses(ValueError, "'cuda'", ", ".join(KERNELS)):
        kernels("cuda")


def test_auto_takes_pallas_on_a_gpu_that_can() -> None:
    with tracing_for(H100):
        assert resolve_backend("auto", "gpu") == "pallas"
        assert resolve_backend("pallas", "gpu") == "pallas"


def test_auto_says_what_it_takes_on_an_older_gpu(caplog: pytest.LogCaptureFixture) -> None:
    with tracing_for(V100), caplog.at_level(logging.WARNING):
        assert resolve_backend("auto", "gpu") == "dense"
    assert "'auto' takes 'dense'" in caplog.text and "V100" in caplog.text


def test_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._log_choice.cache_clear()
    with tracing_for(H100), caplog.at_level(logging.INFO):
        for name in (None, None, "triton"):
            kernels(name)
    assert [record.getMessage() for record in caplog.records] == [f"kernels 'triton' on {H100.kind}"]


def test_tracing_for_ends() -> None:
    before = current_device()
    assert before.platform == jax.devices()[0].platform
    with pytest.raises(KeyError), tracing_for(H100):
        assert current_device() == H100
        raise KeyError
    assert current_device() == before
