"""The command, without and with the compilers that the extras `compile` and `compile-tpu` bring."""

import dataclasses
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from moejax.compiling.cases import Case
from moejax.compiling.children import compile_all
from moejax.compiling.targets import TARGETS, TPUS, Tpu, gpu_target, target, target_config
from moejax.compiling.tools import EXTRAS, TPU_WHEELS, WHEELS, Extra, missing
from scripts import compile_for
from scripts import compiled_baseline as baseline
from scripts import compiled_report as report
from tests.messages import error_line, refuses, says
from tests.moejax.compiling import recorded
from tests.moejax.compiling.made import CASE, facts

ROOT = Path(__file__).parents[2]
REASON, TPU_REASON = missing("compile"), missing("compile-tpu")


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the compilers say of every case of one target; texts put into it are planted."""
    planted: dict[str, str] = {}

    def instead(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        yield from (facts(tmp_path, case=case, **planted) for case in cases)

    monkeypatch.setattr(compile_for, "missing", lambda extra: None)
    monkeypatch.setattr(compile_for, "compile_all", instead)
    return planted


def test_without_the_extra_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WHEELS, "nvidia-cuda-nvdisasm", "0.0.1")
    assert compile_for.main(["--target", "h200"]) == 2
    error_line(capsys.readouterr().err, "nvidia-cuda-nvdisasm 0.0.1", "pip install 'moejax[compile]'")
    monkeypatch.setitem(TPU_WHEELS, "libtpu", "0.0.1")
    assert compile_for.main(["--target", "v5e:2x4"]) == 2
    error_line(capsys.readouterr().err, "libtpu 0.0.1", "pip install 'moejax[compile-tpu]'")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "h300"], ["'h300'", "h200", "rtx-pro-6000", "v5e:2x4"]),
        (["--target", "v4:2x2"], ["'v4:2x2'", "v5e", "v6e"]),
        ([], ["--target", "h200"]),
        (["--target", "h200", "--layers", "33"], ["--layers", 1, 32, "mixtral-8x7b", 33]),
        (["--target", "h200", "--model", "no"], ["'no'"]),
        (["--target", "h200", "-p", "8192"], ["--input-len", 1, 4096, 8192]),
        (["--target", "h200", "--dispatch", "no"], ["'no'", "replicated"]),
        (["--check", "--baseline", "no.json"], ["no.json", "--update"]),
        (["--check", "--target", "h100"], ["h200", "v5e:2x4", "h100"]),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], said: list[Any], compiled: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_for.main(arguments) == 2
    error_line(capsys.readouterr().err, *said)


def test_what_is_compiled_is_told_and_written(
    compiled: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    arguments = ["--target", "h200,b200", "--program", "decode,layer", "--tokens", "4", "--json", str(path)]
    assert compile_for.main(arguments) == 0
    out = capsys.readouterr().out
    for name in ("h200", "b200"):
        says(out, f"{name} decode mixtral-8x7b", "batch 1", f"{name} decode", "batch 8", f"{name} layer", "4 tokens")
    says(out, "few_tokens_gate_up", "28x8x1", "110,592", "2 (shared)", "1 HGMMA", "16 x 2")
    assert [one["case"]["batch"] for one in json.loads(path.read_text())] == [1, 8, 4] * 2


def test_a_batch_is_rounded_up_to_what_divides(compiled: dict[str, str]) -> None:
    arguments = ["--target", "h200", "--mesh", "data=2,expert=4", "--dispatch", "gather", "--program", "decode"]
    options = compile_for.make_parser().parse_args(arguments)
    assert [case.batch for case in compile_for.cases_of(options)] == [8]


def test_check_is_red_for_what_got_worse_and_green_again_after_an_update(
    compiled: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--target", "h200", "--baseline", str(tmp_path / "baseline.json")]
    assert compile_for.main([*arguments, "--update"]) == 0
    assert compile_for.main([*arguments, "--check"]) == 0
    capsys.readouterr()
    compiled["ptxas"] = recorded.SPILLS
    assert compile_for.main([*arguments, "--check"]) == compile_for.WORSE
    out = capsys.readouterr().out
    says(out, "WORSE h200 decode mixtral-8x7b", "few_tokens_gate_up spilled", 0, 40)
    assert compile_for.main([*arguments, "--update"]) == 0
    assert compile_for.main([*arguments, "--check"]) == 0


def test_a_report_names_what_would_be_slow(tmp_path: Path) -> None:
    slow = facts(tmp_path, thunks=recorded.HOST_LOOP, ptxas=recorded.SPILLS, code=recorded.DROPPED)
    first, second, third = list(report.faults(slow))[:3]
    says(first, 1, "loops", 2, "kernels")
    says(second, "few_tokens_gate_up", 40)
    # 3 copies of 16 bytes of 128 threads in 2 blocks; 4.8 TB/s, 0.7 us, 132 multiprocessors.
    says(third, "few_tokens_gate_up", 12, "KB", 25)


def test_targets_are_told_to_the_compiler_as_their_hardware_files_say() -> None:
    for name, gpu in TARGETS.items():
        text = target_config(gpu)
        says(text, f"device_memory_size: {gpu.figures.memory_bytes}", f"major: {gpu.capability[0]}")
        assert gpu.kind.lower() in gpu.figures.kinds, name


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_extras_are_pinned_to_what_is_asked_for(extra: Extra) -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    assert {f"{name}=={number}" for name, number in EXTRAS[extra].items()} <= set(listed)


def test_tpus_are_named_by_their_topology() -> None:
    assert target("v6e:2x4") == Tpu(topology="v6e:2x4", hardware="tpu-v6e")
    for name, hardware in TPUS.items():
        found = target(f"{name}:2x2")
        assert isinstance(found, Tpu) and found.figures.name == hardware


def test_a_check_says_which_compilers_are_left_out(
    compiled: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {"compile-tpu": "needs libtpu 0.0.42.1"}
    monkeypatch.setattr(compile_for, "missing", gone.get)
    assert compile_for.main(["--update", "--baseline", str(tmp_path / "baseline.json")]) == 0
    says(capsys.readouterr().out, "left out: compile-tpu", "libtpu 0.0.42.1", "baseline.json written")
    monkeypatch.setattr(compile_for, "missing", lambda extra: f"needs {extra}")
    assert compile_for.main(["--check"]) == 2
    error_line(capsys.readouterr().err, "needs compile", "needs compile-tpu")


@pytest.mark.skipif(TPU_REASON is not None, reason=f"nothing is compiled for a TPU here: {TPU_REASON}")
def test_experts_of_a_tpu_are_multiplied_by_their_own_rows() -> None:
    case = next(one for one in baseline.checked_cases("compile-tpu") if one.program == "layer" and one.batch == 4096)
    ragged, dense = compile_all([case, dataclasses.replace(case, backend="dense")])
    assert ragged["backend"] == "ragged" and ragged["operations"]["kernels"] > 0 == dense["operations"]["kernels"]
    assert ragged["bytes_accessed"] < dense["bytes_accessed"]
    assert ragged["memory"]["temporary"] < dense["memory"]["temporary"] / 2


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks", "limit"),
    [
        (128, 96, 64, 5, "registers"),
        (128, 72, 110_592, 2, "shared memory"),
        (128, 16, 0, 16, "threads"),
        (32, 16, 0, 32, "blocks"),
    ],
)
def test_blocks_of_a_multiprocessor(threads: int, registers: int, shared: int, blocks: int, limit: str) -> None:
    assert gpu_target("h200").multiprocessor.resident(threads, registers, shared) == (blocks, limit)


def test_a_worker_that_fails_is_told_with_its_last_line() -> None:
    with refuses(RuntimeError, "h200 decode mixtral-8x7b", "no_such_worker"):
        list(compile_all([CASE], worker="moejax.compiling.no_such_worker"))


@pytest.mark.skipif(REASON is not None, reason=f"nothing is compiled for a GPU here: {REASON}")
def test_a_layer_compiles_down_to_machine_code() -> None:
    case = next(one for one in baseline.checked_cases() if one.program == "layer" and one.batch == 64)
    (found,) = compile_all([case])
    assert found["launches"]["host_loops"] == 0
    assert not found["launches"]["unknown"]
    assert found["kernels"]["few_tokens_gate_up"]["tensor_kind"] == "HGMMA"
    assert baseline.compare(baseline.read_baseline(ROOT / baseline.PATHS["compile"])[case], found).worse == ()
