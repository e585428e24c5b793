"""A comparison as CSV: read back, and the same numbers as in JSON."""

import csv
import dataclasses
import io

import pytest

from moejax import MeshRow, compare_meshes
from moejax.planning.export import comparison_json, row_json
from moejax.planning.export_csv import ASKED, COLUMNS, comparison_csv
from moejax.planning.hardware_file import load_hardware
from moejax.planning.question import Question

QUESTION = Question(
    model="mixtral-8x7b",
    hardware=load_hardware("h100-sxm"),
    skew=None,
    expert_load="my load, old.json",
    efficiency="60%",
)


@pytest.fixture(scope="module")
def rows() -> list[MeshRow]:
    return compare_meshes("mixtral-8x7b", [2, 3], "h100-sxm", batch_size=[1, 8], ttft=0.05)


def test_every_row_is_a_line_with_the_numbers_of_json(rows: list[MeshRow]) -> None:
    read = list(csv.DictReader(io.StringIO(comparison_csv(rows, QUESTION))))
    assert len(read) == len(rows) and {len(line) for line in read} == {len(COLUMNS) + len(ASKED)}
    for line, row in zip(read, rows, strict=True):
        known = row_json(row)
        assert (int(line["devices"]), line["dispatch"]) == (known["devices"], known["dispatch"])
        assert [int(line[axis]) for axis in ("data", "expert", "tensor")] == list(known["mesh"].values())
        assert line["why_not"] == (known["why_not"] or "")
        assert line["meets_targets"] == str(known["meets_targets"]).lower()
        if known["decode"] is None:
            assert line["step [s]"] == line["memory [bytes/device]"] == ""
            continue
        assert int(line["memory [bytes/device]"]) == known["bytes_per_device"]["total"]
        assert float(line["step [s]"]) == known["decode"]["seconds"]
        assert float(line["prefill [s]"]) == known["prefill"]["seconds"]
        parts = ("weights", "kv", "compute_beyond_reading", "latency", "exchange", "overhead")
        assert sum(float(line[f"step_{part} [s]"]) for part in parts) == pytest.approx(known["decode"]["seconds"])


def test_what_cannot_be_used_says_so(rows: list[MeshRow]) -> None:
    read = list(csv.DictReader(io.StringIO(comparison_csv(rows, QUESTION))))
    assert {line["usable"] for line in read if line["why_not"]} == {"false"}
    assert any(line["why_not"] == "" and line["usable"] == "true" for line in read)
    assert any(line["step [s]"] == "" for line in read)  # the hidden axis does not divide over 3
    assert any("latency" in line["best_for"].split() for line in read)


def test_a_line_says_what_was_asked_as_json_does(rows: list[MeshRow]) -> None:
    """Two results that were saved can be told apart, also where their lines are put together."""
    asked = comparison_json(rows, QUESTION)["asked"]
    assert asked["model"] == "mixtral-8x7b" and asked["hardware"] == "h100-sxm" and asked["software"] == "moejax"
    assert (asked["input_len"], asked["context"], asked["dtype"]) == (512, 2048, "bfloat16")
    read = list(csv.DictReader(io.StringIO(comparison_csv(rows, QUESTION))))
    for line in read:
        assert {name: line[name] for name in ASKED} == {name: str(asked[name] or "") for name in ASKED}
        assert (line["input_len [tokens]"], line["context [tokens]"]) == ("512", "2048")
        assert (line["ttft_target [s]"], line["tpot_target [s]"]) == ("0.05", "")
    one = {field.name for field in dataclasses.fields(Question)}
    assert set(asked) == one | {"input_len", "context", "dtype"} and one - set(ASKED) == {
        "dispatch"
    }  # each line has it


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *(("model", "demo"), ("software", "vllm"), ("times", "measured"), ("skew", "zipf:1.0"), ("expert_load", "b")),
        *(
            ("efficiency", "0.6"),
            ("objective", "ttft"),
            ("usable_fraction", 0.5),
            ("micro_batches", 2),
            ("dispatch", "gather"),
        ),
    ],
)
def test_another_question_is_another_result(rows: list[MeshRow], name: str, other: object) -> None:
    changed = dataclasses.replace(QUESTION, **{name: other})  # type: ignore[arg-type]
    assert comparison_json(rows, changed)["asked"] != comparison_json(rows, QUESTION)["asked"]
    assert (comparison_csv(rows, changed) != comparison_csv(rows, QUESTION)) == (name in ASKED)


def test_numbers_of_time_and_size_have_a_unit_in_the_header() -> None:
    bare = {name for name in COLUMNS if "[" not in name}
    assert bare == {
        *("devices", "data", "expert", "tensor", "dispatch", "batch_size", "dtype", "usable", "why_not"),
        *("meets_targets", "best_for", "imbalance_step", "imbalance_prefill", "largest_batch"),
    }
