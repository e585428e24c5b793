"""`moejax mesh compare --compile` and `--measure`, and `moejax mesh calibrate`, as a user calls them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moejax.cli import console
from moejax.measuring import compiled
from moejax.moe.split import Split, make_rules
from moejax.planning.checks import ComparedCall, CompiledCheck
from moejax.planning.models import model_config
from tests.messages import error_line, refuses, says
from tests.moejax.cli.conftest import Call

COMPARE = ("mesh", "compare", "--model", "demo", "--devices", "2", "--hardware", "cpu", "--context", "128", "-p", "32")


@pytest.fixture
def compiled_as_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the second split, whose cache is larger."""

    def check(split: Split, cache: int) -> CompiledCheck:
        rules = make_rules(model_config("demo"), split.mesh, split.dispatch)
        job = compiled._jobs(model_config("demo"), split, WORKLOADS[-1], (1, 2))[0]
        found = compiled.predicted_collectives(model_config("demo"), rules, job)
        call = ComparedCall(collectives=found, predicted=found)
        return CompiledCheck(
            decode=call,
            prefill=call,
            weight_bytes=1_000,
            predicted_weight_bytes=1_000,
            kv_bytes=cache,
            predicted_kv_bytes=200,
            temp_bytes=3,
            differences=() if cache == 200 else ("decode: 200 bytes of key/value cache predicted, 201 compiled",),
        )

    def compile_splits(config: Any, splits: Sequence[Split], workload: Any, *, told: Any) -> list[CompiledCheck]:
        WORKLOADS.append(workload)
        for done in range(20):
            told(done + 1, 20)
        return [check(split, 201 if number == 1 else 200) for number, split in enumerate(splits)]

    monkeypatch.setattr(compiled, "compile_splits", compile_splits)


WORKLOADS: list[Any] = []


@pytest.mark.usefixtures("compiled_as_predicted")
def test_predicted_is_printed_against_compiled(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0)
    outcome = call(*COMPARE, "--batch-size", "1,4", "--compile")
    assert outcome.status == 0
    told = outcome.err.splitlines()
    assert len(told) == 20
    for done, line in enumerate(told, 1):
        says(line, f"{done} of 20")
    assert WORKLOADS[-1].batch_size == 4, "the largest batch is compiled, and no other"
    _, _, checks = outcome.out.partition("compiled for simulated devices, float32, batch 4, per device and call")
    lines = [line.split() for line in checks.splitlines()]
    assert sum("step" in line for line in lines) == 5
    cache = [" ".join(line[1:]) for line in lines if line[:1] == ["cache"]]
    assert sorted(cache) == ["200 != 201", *["200 = 200"] * 4]
    says(checks, "4 of 5")
    says(checks, "decode", "200 bytes", "201")
    table, *_ = checks.partition("4 of 5 splits")
    assert max(map(len, table.splitlines())) <= 80
    assert "\x1b" not in outcome.out


@pytest.mark.usefixtures("compiled_as_predicted")
def test_json_has_what_was_compiled(call: Call) -> None:
    outcome = call(*COMPARE, "--batch-size", "1,4", "--compile", "--json", "--quiet")
    assert outcome.err == ""
    found = json.loads(outcome.out)
    checks = [row["compiled"] for row in found["rows"] if row["batch_size"] == 4 and row["built"]]
    assert sorted(check["equal"] for check in checks) == [False, True, True, True, True]
    assert all(check["decode"]["collectives"] == check["decode"]["predicted"] for check in checks)
    assert all(row["compiled"] is None for row in found["rows"] if row["batch_size"] == 1)


def test_what_cannot_be_checked_here_is_told_in_one_line(call: Call, tmp_path: Path) -> None:
    taken = tmp_path / "mine.toml"
    taken.write_text("")
    for arguments, facts in (
        ((*COMPARE, "--measure"), ("--measure", "8 CPU devices", "simulated")),
        ((*COMPARE[:-4], "-p", "32", "--context", "0", "--compile"), ("--context 0", "context of at least 1")),
        (("mesh", "calibrate"), ("calibrate", "8 CPU devices", "simulated")),
        (("mesh", "calibrate", "--output", taken), (taken, "remove it")),
        (("mesh", "calibrate", "--output", tmp_path / "x.json"), ("--output", ".toml")),
        (("mesh", "calibrate", "--output", tmp_path / "no" / "x.toml"), ("no folder", tmp_path / "no")),
    ):
        outcome = call(*arguments)
        assert (outcome.status, outcome.out) == (2, "")
        error_line(outcome.err, *facts)


def test_measure_on_the_one_device_of_a_laptop() -> None:
    """A process of its own, because this one's devices are simulated."""
    command = (
        "mesh compare --model demo --devices 1 --hardware cpu -b 1 -p 32 --context 128 --measure --format json "
        "--dtype float32"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "moejax", *command.split()],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0
    says(ran.stderr, "cpu", "2 cores")
    (row,) = json.loads(ran.stdout)["rows"]
    found = row["measured"]
    assert (found["layers"], found["reduced"]) == (4, False)
    assert found["predicted_decode_seconds"] == row["decode"]["seconds"]
    assert found["decode_error"] == pytest.approx(row["decode"]["seconds"] / found["decode_seconds"] - 1)
    assert 0 < found["decode_seconds"] < 1 and 0 < found["prefill_seconds"] < 10


def test_measured_rows_are_printed_with_their_error(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from moejax.cli import mesh_checks
    from moejax.planning.checks import Measured

    times = Measured(
        decode_seconds=0.002,
        prefill_seconds=0.01,
        predicted_decode_seconds=0.001,
        predicted_prefill_seconds=0.02,
        layers=2,
        reduced=True,
    )
    monkeypatch.setattr(mesh_checks, "check_measurable", lambda *given, **flags: None)
    monkeypatch.setattr(
        mesh_checks, "measured", lambda model, plan, rows, *, quiet: [replace(rows[0], measured=times), *rows[1:]]
    )
    out = call(*COMPARE, "--measure").out
    assert "2 of 4" in out and "-50%" in out and "+100%" in out
    says(" ".join(out.split()), "4 layers")


def test_what_is_measured_has_to_be_what_was_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    from moejax.cli.mesh_checks import check_same_kind
    from moejax.planning.hardware_file import load_hardware

    h100 = load_hardware("h100-sxm")
    check_same_kind(h100, "NVIDIA H100 80GB HBM3", quiet=False)
    assert capsys.readouterr().err == ""
    with refuses(ValueError, "--measure", "'cpu'", "--hardware h100-sxm", "moejax mesh calibrate", "--output"):
        check_same_kind(h100, "cpu", quiet=False)
    for quiet in (False, True):
        check_same_kind(replace(h100, kinds=()), "cpu", quiet=quiet)
        assert ("h100-sxm" in capsys.readouterr().err) != quiet
        check_same_kind(load_hardware("cpu"), "cpu", quiet=quiet)
        assert ("cpu are those of 2 cores" in capsys.readouterr().err) != quiet


def test_calibrate_says_what_it_measures(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from moejax.measuring import calibration
    from moejax.planning.hardware_file import load_hardware

    def calibrate(name: str, told: Any) -> Any:
        told("bandwidth of the memory")
        return replace(load_hardware("cpu"), name=name)

    monkeypatch.setattr(calibration, "calibrate", calibrate)
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0)
    path = tmp_path / "here.toml"
    measuring, written = call("mesh", "calibrate", "--output", path).err.splitlines()
    says(measuring, "bandwidth of the memory")
    says(written, path)
    assert call("mesh", "calibrate", "--quiet").err == ""
