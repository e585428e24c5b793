"""Comparisons of logits: the numbers, and verdicts that can go both ways."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import moejax
from moejax.cli import verify_reference
from moejax.measuring.logits import compare_logits, fixed_prompts
from moejax.measuring.reference import Passes
from tests.convert.checkpoint_files import write_single
from tests.hf_models import build
from tests.messages import error_line, says
from tests.moejax.cli.conftest import Call
from tests.moejax.conversion_folders import tensors_in

RNG = np.random.default_rng(0)
LOGITS = [RNG.standard_normal((5, 40)).astype(np.float32), RNG.standard_normal((3, 40)).astype(np.float32)]


def test_equal_logits() -> None:
    found = compare_logits(LOGITS, [array.copy() for array in LOGITS], tolerance=0.0)
    assert (found.positions, found.max_abs, found.mean_kl) == (8, 0.0, 0.0)
    assert (found.top10_overlap, found.greedy_agreement, found.first_difference_gap) == (1.0, 1.0, None)
    assert found.bit_equal and found.passed


def test_the_numbers_are_what_they_are_called() -> None:
    other = [LOGITS[0].copy(), LOGITS[1].copy()]
    best, second = np.argsort(-LOGITS[0][2])[:2]
    gap = LOGITS[0][2, best] - LOGITS[0][2, second]
    other[0][2, second] += gap + np.float32(0.5)
    found = compare_logits(LOGITS, other, tolerance=1.0)
    assert found.max_abs == pytest.approx(gap + 0.5, abs=1e-6)
    assert found.greedy_agreement == 7 / 8
    assert found.first_difference_gap == pytest.approx(gap)
    p, q = (np.exp(row) / np.exp(row).sum() for row in (LOGITS[0][2].astype(float), other[0][2].astype(float)))
    assert found.mean_kl == pytest.approx((p * np.log(p / q)).sum() / 8)
    assert found.top10_overlap == 1.0 and not found.bit_equal
    # The eleventh takes the place of the tenth at one of 8 positions.
    other = [LOGITS[0], LOGITS[1].copy()]
    tenth, eleventh = np.argsort(-LOGITS[1][0])[9:11]
    other[1][0, [tenth, eleventh]] = other[1][0, [eleventh, tenth]]
    assert compare_logits(LOGITS, other, tolerance=1.0).top10_overlap == pytest.approx(1 - 0.1 / 8)


def test_verdicts() -> None:
    other = [array.copy() for array in LOGITS]
    other[1][2, 7] += np.float32(0.01)
    found = compare_logits(LOGITS, other, tolerance=0.02)
    assert found.passed and not found.bit_equal and found.mean_kl > 0
    assert not compare_logits(LOGITS, other, tolerance=0.005).passed
    assert not compare_logits(LOGITS, other, tolerance=0.02, kl_tolerance=found.mean_kl / 2).passed
    broken = [array.copy() for array in LOGITS]
    broken[0][0, 0] = np.nan
    assert not compare_logits(LOGITS, broken, tolerance=np.inf).passed
    assert compare_logits(broken, [array.copy() for array in broken], tolerance=0.0).passed, "every bit is the same"
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_logits(LOGITS, LOGITS[:1], tolerance=1.0)


def test_prompts_are_the_same_for_a_size() -> None:
    assert fixed_prompts(300, 1000) == fixed_prompts(300, 1000)
    assert {len(prompt) for prompt in fixed_prompts(300, 7)} == {7}
    assert max(max(prompt) for prompt in fixed_prompts(20, 1000)) < 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Hugging Face folder, and its conversion."""
    folder = tmp_path_factory.mktemp("verify")
    build("multi_head_one_layer", folder / "hf")
    moejax.convert(folder / "hf", folder / "orbax")
    return folder / "hf", folder / "orbax"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_conversion_computes_what_transformers_computes(call: Call, folders: tuple[Path, Path], dtype: str) -> None:
    hf, orbax = folders
    outcome = call("verify", orbax, "--reference", hf, "--dtype", dtype, "--json")
    assert outcome.status == 0, outcome
    found = json.loads(outcome.out)
    assert found["passed"] and found["positions"] == 80
    assert found["max_abs"] > 0, "the two are not the same program"
    assert found["greedy_agreement"] > 0.9 and found["top10_overlap"] > 0.9


def test_in_float32_they_are_the_same_and_in_bfloat16_as_close_as_that_tells(
    call: Call, folders: tuple[Path, Path]
) -> None:
    hf, orbax = folders
    lines = call("verify", orbax, "--reference", hf).out.splitlines()
    says(lines[0], "float32", "float32")
    assert lines[-1].split(maxsplit=1) == ["verdict", "the same"]
    outcome = call("verify", orbax, "--reference", hf, "--dtype", "bf16")
    assert outcome.status == 0
    found = json.loads(call("verify", orbax, "--reference", hf, "--dtype", "bf16", "--json").out)
    differ = round((1 - found["greedy_agreement"]) * 80)
    assert found["dtype"] == "bfloat16"
    lines = outcome.out.splitlines()
    says(lines[0], "bfloat16", "bfloat16")
    says(lines[-1], "verdict", "bfloat16", f"{differ} of 80", "--dtype float32")


def test_a_verdict_counts_the_positions_that_differ() -> None:
    """Random logits agree at few of them: what is close enough in divergence is not called the same."""
    other = [array + RNG.standard_normal(array.shape).astype(np.float32) * np.float32(0.2) for array in LOGITS]
    found = compare_logits(LOGITS, other, tolerance=np.inf, kl_tolerance=0.05)
    assert found.passed and found.greedy_agreement < 1
    differ = round((1 - found.greedy_agreement) * 8)
    line = verify_reference.lines(found, Passes(max_abs=None, mean_kl=0.05), "bfloat16")[-1]
    says(line, "bfloat16", f"{differ} of 8", "float32")
    assert verify_reference.lines(found, Passes(max_abs=9.0, mean_kl=0.05), "float32")[-1].endswith("the same")


def exchange_experts(source: Path, target: Path) -> Path:
    """The same model but for two experts, each in the other's place."""
    tensors = tensors_in(source)
    first, second = (f"model.layers.0.block_sparse_moe.experts.{number}.w1.weight" for number in (0, 1))
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return write_single(target, tensors | {first: tensors[second], second: tensors[first]})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_model_fails(call: Call, folders: tuple[Path, Path], tmp_path: Path, dtype: str) -> None:
    hf, _ = folders
    wrong = exchange_experts(hf, tmp_path / "wrong")
    outcome = call("verify", wrong, "--reference", hf, "--dtype", dtype)
    assert outcome.status == 1
    assert outcome.out.splitlines()[-1] == "verdict                   NOT the same"
    assert outcome.err == ""


def test_another_configuration_is_an_error(call: Call, folders: tuple[Path, Path]) -> None:
    outcome = call("verify", "demo", "--reference", folders[0])
    assert outcome.status == 2
    says(outcome.err, "vocab_size", "2048", "128")


def test_a_reference_that_is_converted_is_an_error(call: Call, folders: tuple[Path, Path]) -> None:
    hf, orbax = folders
    outcome = call("verify", hf, "--reference", orbax)
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, orbax, f"moejax convert {orbax} {orbax}-hf")


def test_without_transformers_it_says_what_to_install(
    call: Call, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    outcome = call("verify", folders[1], "--reference", folders[0])
    assert outcome.status == 2
    error_line(outcome.err, "--reference", "transformers", "pip install 'moejax[torch]'", "5 GB")
