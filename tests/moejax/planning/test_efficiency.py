"""Shares of a datasheet that a roofline takes as reached: what they change, and where published systems are."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moejax import MeshRow, compare_meshes
from moejax.planning.efficiency import PRESETS, parse_efficiency
from moejax.planning.hardware import Efficiency
from moejax.planning.hardware_file import load_hardware
from moejax.planning.hardware_toml import hardware_toml
from moejax.planning.software import basis_said
from tests.messages import refuses, says

PUBLISHED = json.loads((Path(__file__).resolve().parents[3] / "docs/predictions/published.json").read_text())


def tensor(hardware: Any, devices: int, **options: Any) -> dict[int, MeshRow]:
    """Mixtral 8x7B split along tensor alone, by batch size."""
    given = {"software": "ideal", "dispatch": "replicated", "usable_fraction": 1.0} | options
    rows = compare_meshes("mixtral-8x7b", devices, hardware, **given)
    return {row.batch_size: row for row in rows if row.label == f"tensor={devices}"}


def test_shares_by_number_or_name() -> None:
    assert (
        parse_efficiency(0.6)
        == parse_efficiency("0.6")
        == parse_efficiency(".6")
        == Efficiency(bandwidth=0.6, matrix_rate=0.6)
    )
    assert parse_efficiency("0.8,0.5") == Efficiency(bandwidth=0.8, matrix_rate=0.5)
    assert parse_efficiency("60%") == parse_efficiency("0.6") and parse_efficiency("100%") == Efficiency()
    assert parse_efficiency("80%,0.5") == parse_efficiency("80%,50%") == Efficiency(bandwidth=0.8, matrix_rate=0.5)
    assert parse_efficiency(1) == Efficiency()
    assert parse_efficiency("VLLM-A100") == PRESETS["vllm-a100"].efficiency
    with refuses(ValueError, "efficiency", "got 60.0", "60%"):
        parse_efficiency("60")
    assert parse_efficiency("vllm-a100") == PRESETS["vllm-a100"].efficiency
    for wrong in (0, 1.01, "101%", "0%", "%", "60%%", "0.5,1.5", "", "half", True, None, "0.5,0.5,0.5", float("nan")):
        with refuses(ValueError, "efficiency"):
            parse_efficiency(wrong)


def test_each_share_divides_what_it_is_of() -> None:
    bound, slow_memory, slow_products = (
        tensor("h200", 8, batch_size=1, efficiency=one)[1] for one in (None, "0.5,1", "1,0.5")
    )
    for name in ("decode", "prefill"):
        full, memory, products = (getattr(row, name) for row in (bound, slow_memory, slow_products))
        assert memory.weights_seconds == pytest.approx(2 * full.weights_seconds)
        assert memory.kv_seconds == pytest.approx(2 * full.kv_seconds)
        assert products.compute_seconds == pytest.approx(2 * full.compute_seconds)
        assert products.weights_seconds == full.weights_seconds
        assert memory.communication_seconds == full.communication_seconds == products.communication_seconds


def test_a_hardware_file_may_say_it_and_the_times_line_does(tmp_path: Path) -> None:
    plain = load_hardware("v100-32gb")
    says(basis_said(plain, "moejax", "float16"), "roofline")
    path = tmp_path / "mine.toml"
    path.write_text(hardware_toml(dataclasses.replace(plain, efficiency=Efficiency(bandwidth=0.7, matrix_rate=0.4))))
    found = load_hardware(path)
    assert found.efficiency == Efficiency(bandwidth=0.7, matrix_rate=0.4)
    for software in ("moejax", "ideal"):
        says(basis_said(found, software, "float16"), "roofline", "0.7", "bandwidth", "0.4", "matrix rate")
    options = {"dtype": "float16", "batch_size": 1, "usable_fraction": 0.9}
    by_file = tensor(found, 8, **options)[1]
    assert by_file == tensor(plain, 8, efficiency="0.7,0.4", **options)[1]
    assert by_file.decode != tensor(plain, 8, **options)[1].decode


def test_it_is_refused_where_seconds_are_no_roofline() -> None:
    calibrated = dataclasses.replace(load_hardware("cpu"), layer_overhead=1e-6)
    with refuses(ValueError, "efficiency=0.6", "software=vllm", "h200", "software=ideal"):
        compare_meshes("demo", 1, "h200", software="vllm", efficiency=0.6)
    with refuses(ValueError, "efficiency=0.6", "cpu", "moejax mesh calibrate"):
        compare_meshes("demo", 1, calibrated, dtype="float32", efficiency=0.6)
    assert compare_meshes("demo", 1, "h200", dtype="float32", efficiency=0.6)  # in which nothing was measured


def published(name: str) -> Iterator[tuple[float, float]]:
    """What a roofline with this preset predicts, and what was published."""
    if name == "gpt-fast-a100":
        record = PUBLISHED["gpt-fast"]
        row = tensor("a100-80gb", 2, batch_size=1, input_len=5, context=105, efficiency=name)[1]
        yield 1 / row.tokens_per_second_total, 1 / record["tokens_per_second"]["bfloat16"]["2"]
        assert record["source"] == PRESETS[name].source
        return
    record = next(one for one in PUBLISHED["vllm"] if one["source"] == PRESETS[name].source)  # type: ignore[index]
    sizes = [int(size) for size in record["seconds"]]
    options = {"input_len": record["input_len"], "context": record["input_len"] + record["output_len"] // 2}
    rows = tensor(record["hardware"], record["devices"], batch_size=sizes, efficiency=name, **options)
    for size in sizes:
        yield (
            rows[size].ttft_seconds + (record["output_len"] - 1) * rows[size].tpot_seconds,
            record["seconds"][str(size)],
        )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_predicts_what_its_source_published(name: str) -> None:
    pairs = list(published(name))
    errors = [predicted / measured - 1 for predicted, measured in pairs]
    assert max(map(abs, errors)) <= PRESETS[name].within  # type: ignore[index]
    if len(errors) > 1:  # fitted: neither too fast nor too slow in all
        assert min(errors) < 0 < max(errors)
