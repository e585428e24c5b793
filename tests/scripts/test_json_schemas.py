"""docs/schemas are what the script makes of the code, and outputs of commands are as they say, without a key beside."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import moejax
from moejax import compare_meshes
from moejax._sharding.collectives import Collective
from moejax.checkpoint import DEMO_FOLDER
from moejax.cli import app
from moejax.planning.checks import ComparedCall, CompiledCheck, Measured
from moejax.planning.expert_load import DEMO_LOAD
from moejax.planning.export import comparison_json
from moejax.planning.hardware_file import load_hardware
from moejax.planning.question import Question
from scripts.bench_page import read_reports
from scripts.bench_report import DOCS
from scripts.json_schemas import DIALECT, FOLDER, SCHEMAS, text
from scripts.json_types import array, dataclass_schema, either, schema_of

PAGE = (DOCS / "json.md").read_text(encoding="utf-8")
Validator = jsonschema.Draft202012Validator


def strict(schema: Any) -> Any:
    """The schema, with no key allowed that it does not name: what is written down is all there is."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    return closed | {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else closed


def problems(name: str, value: Any) -> list[str]:
    schema = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    return [error.message for error in Validator(strict(schema)).iter_errors(json.loads(json.dumps(value)))]


@pytest.mark.parametrize("name", SCHEMAS)
def test_files_are_up_to_date_and_on_the_page(name: str) -> None:
    """Else: python -m scripts.json_schemas"""
    path = FOLDER / f"{name}.schema.json"
    assert path.read_text(encoding="utf-8") == text(name)
    Validator.check_schema(json.loads(text(name)))
    assert json.loads(text(name))["$schema"] == DIALECT
    assert f"(schemas/{name}.schema.json)" in PAGE
    assert {path.name for path in FOLDER.iterdir()} == {f"{one}.schema.json" for one in SCHEMAS}


def comparisons() -> Iterator[Any]:
    """Of splits that fit and that do not, with targets and without, checked and measured."""
    hardware = load_hardware("h100-sxm")
    rows = compare_meshes("mixtral-8x7b", [2, 3], hardware, batch_size=[1, 8], ttft=0.05, tpot=1e-9)
    yield comparison_json(rows, Question(model="mixtral-8x7b", hardware=hardware), ["--dtype float16"])
    single = load_hardware("cpu")
    one = compare_meshes("demo", 1, single, batch_size=1, dtype="float32", skew="zipf:1.0")
    kind = Collective(kind="all-reduce", axes=("tensor",), elements=8, dtype="float32", in_loop=True, scope="moe")
    counted = ComparedCall(collectives=[kind], predicted=[kind, kind])
    check = CompiledCheck(
        decode=counted,
        prefill=counted,
        weight_bytes=1,
        kv_bytes=1,
        predicted_weight_bytes=1,
        predicted_kv_bytes=1,
        temp_bytes=1,
        differences=("one",),
    )
    found = Measured(
        decode_seconds=1.0,
        prefill_seconds=1.0,
        predicted_decode_seconds=1.0,
        predicted_prefill_seconds=1.0,
        layers=1,
        reduced=True,
    )
    checked = [replace(row, compiled=check, measured=found) for row in one]
    yield comparison_json(checked, Question(model="demo", hardware=single, software="ideal", skew="zipf:1.0"))
    yield comparison_json(
        compare_meshes("mixtral-8x7b", 1, hardware, batch_size=1), Question(model="mixtral-8x7b", hardware=hardware)
    )  # nothing fits


def test_comparisons_are_as_the_schema_says() -> None:
    for found in comparisons():
        assert problems("mesh_compare", found) == []
        assert problems("mesh_compare", found | {"new": 1}) and problems("mesh_compare", found | {"rows": [{}]})


def test_what_decode_prints_is_as_the_schema_says(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--logprobs", "2", "--prompt-logprobs", "1", "--return-routed-experts", "-n", "3", "--quiet", "--json")
    assert app.run(["decode", "demo", "--prompt", "A list", "--temperature", "1", "--seed", "1", *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed[0]["outputs"][0]["routed_experts"] and printed[0]["prompt_logprobs"]
    assert problems("decode", printed) == []
    printed[0]["outputs"][0].pop("finish_reason")
    assert any("finish_reason" in one for one in problems("decode", printed))


@pytest.mark.parametrize("report", read_reports(DOCS / "benchmarks").items(), ids=lambda one: one[0])
def test_reports_of_benchmarks_are_as_the_schema_says(report: tuple[str, dict[str, Any]]) -> None:
    assert problems("bench", report[1]) == []
    assert problems("bench", {key: value for key, value in report[1].items() if key != "machine"})


def test_what_a_benchmark_prints_now_is_as_the_schema_says(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--num-prompts", "2", "--input-len", "2-3", "--output-len", "2-2", "-r", "1", "--quiet", "--json")
    assert app.run(["bench", "throughput", "demo", *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert "throughput" in printed and problems("bench", printed) == []


def test_expert_loads_are_as_the_schema_says() -> None:
    for path in (DEMO_LOAD, DOCS / "examples/expert_load.json"):
        assert problems("expert_load", json.loads(path.read_text())) == []
    assert problems("expert_load", {"model": "demo"})


def test_manifests_are_as_the_schema_says(tmp_path: Path) -> None:
    folders = {"orbax": tmp_path / "there", "safetensors": tmp_path / "back"}
    moejax.convert(DEMO_FOLDER, folders["orbax"], verify=False)
    moejax.convert(folders["orbax"], folders["safetensors"], verify=False)
    for name, folder in folders.items():
        written = json.loads((folder / "manifest.json").read_text())
        assert written["format"] == f"moejax-{name}" and problems("manifest", written) == []


def test_types_have_the_schema_of_what_json_writes() -> None:
    assert schema_of(tuple[int, str], {})["prefixItems"] == [{"type": "integer"}, {"type": "string"}]
    assert schema_of(list[float] | None, {}) == either(array({"type": "number"}), {"type": "null"})
    assert dataclass_schema(Measured, {})["required"][0] == "decode_seconds"
    with pytest.raises(TypeError, match="complex"):
        schema_of(complex, {})
