"""Splits compiled for an accelerator: which programs, what is made of their counts, and what predictions make of it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from moejax.compiling import splits
from moejax.compiling.cases import Case
from moejax.families.table import named_config
from moejax.moe.split import Split, resolve_split
from moejax.planning.compare import compare_meshes
from moejax.planning.compiled_counts import KERNELS_PER_LAYER, CompiledCounts
from moejax.planning.hardware_file import load_hardware
from moejax.planning.workload import Workload
from tests.messages import refuses, says
from tests.moejax.compiling.counted import counted

CONFIG = named_config("mixtral-8x7b")
WORKLOAD = Workload(batch_size=8, input_len=512, context=2048)
SPLIT = resolve_split(CONFIG, "expert=2", "replicated")
CASES: list[Case] = []


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def instead(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        CASES[:] = cases
        yield from map(counted, reversed(cases))  # as they come, in any order

    monkeypatch.setattr(splits, "compile_all", instead)
    monkeypatch.setattr(splits, "missing", lambda extra: None)


@pytest.mark.usefixtures("compiled")
def test_a_step_and_a_prefill_of_two_depths_tell_the_whole_model() -> None:
    told: list[tuple[int, int]] = []
    wanted = [(SPLIT, WORKLOAD), (resolve_split(CONFIG, "expert=2", "gather"), WORKLOAD)]
    found = splits.compile_splits(CONFIG, wanted, "h200", told=lambda *both: told.append(both))
    assert list(found) == wanted and told == [(done, 8) for done in range(1, 9)]
    plain, gather = found.values()
    assert (plain.kernels, plain.prefill_kernels, plain.command_buffers) == (13, 20, 33)
    assert plain.temporary == 5_000 + 32 * 1_000 and plain.differences == ()
    says("; ".join(gather.differences), "decode", "missing", "1 x all-gather over expert of 8 int32 in moe")
    assert [(case.program, case.layers, case.batch, case.width) for case in CASES[:4]] == [
        *(("decode", layers, 8, 1) for layers in (1, 2)),
        *(("prefill", layers, 8, 512) for layers in (1, 2)),
    ]
    assert {case.positions for case in CASES[:2]} == {2048} and {case.target for case in CASES} == {"h200"}


def test_a_config_that_has_no_name_reaches_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, num_layers=3, expert_dim=4096)

    def instead(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        assert {replace(case.config, num_layers=3) for case in cases} == {config}
        yield from map(counted, cases)

    monkeypatch.setattr(splits, "compile_all", instead)
    (counts,) = splits.compile_splits(config, [(SPLIT, WORKLOAD)], "h200").values()
    assert counts.command_buffers == 4 and counts.temporary == 8_000


def row(split: Split, counts: CompiledCounts | None, software: str = "moejax") -> Any:
    compiled = None if counts is None else {(split, WORKLOAD): counts}
    rows = compare_meshes(
        CONFIG, 2, "h200", batch_size=8, input_len=512, context=2048, software=software, compiled=compiled
    )
    return next(one for one in rows if one.split == split and one.built)


def test_memory_and_launches_are_the_compiler_s() -> None:
    counts = CompiledCounts(
        target="h200",
        temporary=10**9,
        kernels=2 * KERNELS_PER_LAYER,
        prefill_kernels=KERNELS_PER_LAYER,
        command_buffers=1,
    )
    before, after = row(SPLIT, None), row(SPLIT, counts)
    assert after.footprint.activations == 10**9 != before.footprint.activations
    assert after.footprint.weights == before.footprint.weights
    assert after.decode.overhead_seconds == pytest.approx(2 * before.decode.overhead_seconds, rel=0.01)
    assert after.prefill.overhead_seconds == pytest.approx(before.prefill.overhead_seconds)
    assert after.compiled_for == counts and before.compiled_for is None
    theirs = [row(SPLIT, one, "vllm").decode.seconds for one in (None, counts)]
    assert theirs[0] == theirs[1], "others' launches are theirs"


def test_what_the_compiler_needs_may_not_fit() -> None:
    counts = CompiledCounts(
        target="h200", temporary=200 * 10**9, kernels=None, prefill_kernels=None, command_buffers=None
    )
    found = row(SPLIT, counts)
    assert not found.fits and "does not fit" in found.why_not


def test_targets_are_of_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "missing", lambda extra: None if extra == "compile" else "needs libtpu")
    splits.check_target("h200", load_hardware("h200"))
    with refuses(ValueError, "--compiled-for h200", "H200", "--hardware l40s", "--hardware h200"):
        splits.check_target("h200", load_hardware("l40s"))
    with refuses(ValueError, "'h300'", "h200", "v5e:2x4"):
        splits.check_target("h300", load_hardware("h200"))
    splits.check_target("H200", load_hardware("h200"), 16)
    with refuses(ValueError, "--compiled-for v5e:2x4", "libtpu"):
        splits.check_target("v5e:2x4", load_hardware("tpu-v5e"), 8)
    with refuses(ValueError, "--compiled-for tpu7x:2x2x1", 8, "devices", 16):
        splits.check_target("tpu7x:2x2x1", load_hardware("tpu7x"), 16)
    with refuses(ValueError, "context=0"):
        splits.compile_splits(CONFIG, [(SPLIT, replace(WORKLOAD, context=0))], "h200")
