"""A comparison as CSV: read back, and the same numbers as in JSON."""

import csv
import io

import pytest

from moejax import MeshRow, compare_meshes
from moejax.planning.export import row_json
from moejax.planning.export_csv import COLUMNS, comparison_csv


@pytest.fixture(scope="module")
def rows() -> list[MeshRow]:
    return compare_meshes("mixtral-8x7b", [2, 3], "h100-sxm", batch_size=[1, 8], ttft=0.05)


def test_every_row_is_a_line_with_the_numbers_of_json(rows: list[MeshRow]) -> None:
    read = list(csv.DictReader(io.StringIO(comparison_csv(rows))))
    assert len(read) == len(rows) and {len(line) for line in read} == {len(COLUMNS)}
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


def test_a_line_says_what_was_compared(rows: list[MeshRow]) -> None:
    setting = {"model": "mixtral-8x7b", "software": "moejax", "expert_load": None}
    read = list(csv.DictReader(io.StringIO(comparison_csv(rows, setting))))
    assert all(line["model"] == "mixtral-8x7b" and line["expert_load"] == "" for line in read)
    assert list(read[0]) == [*COLUMNS, *setting]


def test_what_cannot_be_used_says_so(rows: list[MeshRow]) -> None:
    read = list(csv.DictReader(io.StringIO(comparison_csv(rows))))
    assert {line["usable"] for line in read if line["why_not"]} == {"false"}
    assert any(line["why_not"] == "" and line["usable"] == "true" for line in read)
    assert any(line["step [s]"] == "" for line in read)  # the hidden axis does not divide over 3
    assert any("latency" in line["best_for"].split() for line in read)


def test_numbers_of_time_and_size_have_a_unit_in_the_header() -> None:
    bare = {name for name in COLUMNS if "[" not in name}
    assert bare == {
        *("devices", "data", "expert", "tensor", "dispatch", "batch_size", "dtype", "usable", "why_not"),
        *("meets_targets", "best_for", "imbalance_step", "imbalance_prefill", "largest_batch"),
    }
