"""A card that JAX does not use is told, with the command that helps; the system's files are made up."""

import logging
from pathlib import Path

import pytest

from moejax.cli import startup
from moejax.runtime import accelerators
from tests.messages import says


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(accelerators, "ROOT", tmp_path)
    (tmp_path / "dev").mkdir()
    monkeypatch.setattr(accelerators, "_told", lambda: None)
    accelerators.tell_unused_accelerator.cache_clear()
    return tmp_path


def card(root: Path, driver: str | None) -> None:
    (root / "dev/nvidia0").touch()
    if driver is not None:
        (root / "proc/driver/nvidia").mkdir(parents=True)
        line = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Tue Mar  4 2025\nGCC version: 12.2.0\n"
        (root / "proc/driver/nvidia/version").write_text(line)


def test_nothing_is_said_where_there_is_nothing(root: Path) -> None:
    (root / "dev/nvidiactl").touch()  # a driver without a card
    assert accelerators.unused_accelerator() is None


@pytest.mark.parametrize(
    ("driver", "facts"),
    [
        ("580.65.06", ("moejax[cuda13]",)),
        ("999.10", ("moejax[cuda13]",)),
        ("535.230.02", ("moejax[cuda12]",)),
        ("470.256.02", ("470", "525")),
        (None, ("moejax[cuda12]",)),
    ],
)
def test_a_card_without_a_plugin_names_what_its_driver_takes(
    root: Path, driver: str | None, facts: tuple[str, ...]
) -> None:
    card(root, driver)
    says(accelerators.unused_accelerator() or "", "NVIDIA", *facts)


def test_a_plugin_that_does_not_start_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card(root, "580.65.06")
    monkeypatch.setattr(accelerators, "find_spec", lambda name: name == "jax_cuda12_plugin")
    says(accelerators.unused_accelerator() or "", "jax_cuda12_plugin", "JAX_PLATFORMS=cuda")


def test_a_tpu_is_known_by_its_vendor(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "sys/bus/pci/devices/0000:00:05.0").mkdir(parents=True)
    vendor = root / "sys/bus/pci/devices/0000:00:05.0/vendor"
    vendor.write_text("0x8086\n")
    assert accelerators.unused_accelerator() is None
    vendor.write_text("0x1ae0\n")
    says(accelerators.unused_accelerator() or "", "moejax[tpu]")
    monkeypatch.setattr(accelerators, "find_spec", lambda name: name == "libtpu")
    says(accelerators.unused_accelerator() or "", "libtpu", "JAX_PLATFORMS=tpu")


def test_it_is_logged_once_and_not_where_the_cpu_was_asked_for(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(root, "580.65.06")
    monkeypatch.setattr(accelerators, "_told", lambda: "cpu")
    accelerators.tell_unused_accelerator()
    assert caplog.records == []
    accelerators.tell_unused_accelerator.cache_clear()
    monkeypatch.setattr(accelerators, "_told", lambda: "")
    for _ in range(2):
        accelerators.tell_unused_accelerator()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_the_command_line_says_it_as_a_warning(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card(root, "580.65.06")
    startup.prepare_jax()
    line, *others = [line for line in capsys.readouterr().err.splitlines() if "NVIDIA" in line]
    assert others == []
    says(line, "warning:", "moejax[cuda13]")


def test_quiet_does_not_say_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card(root, "580.65.06")
    startup.prepare_jax(quiet=True)
    assert "NVIDIA" not in capsys.readouterr().err
