"""The file of an expert load: written whole, read back, and refused where it is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from moejax.planning.compare import compare_meshes
from moejax.planning.expert_load import (
    DEMO_LOAD,
    LARGEST_FILE,
    ExpertLoad,
    check_new_file,
    read_expert_load,
    recorded_load,
    write_expert_load,
)
from moejax.planning.models import model_config
from tests.messages import refuses

LOAD = ExpertLoad(
    model="two layers", num_layers=2, num_experts=3, experts_per_token=2, tokens=4, counts=((4, 3, 1), (2, 2, 4))
)
FIELDS: dict[str, Any] = {
    "model": "two layers",
    "num_layers": 2,
    "num_experts": 3,
    "experts_per_token": 2,
    "tokens": 4,
    "counts": [[4, 3, 1], [2, 2, 4]],
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    write_expert_load(path, LOAD)
    assert read_expert_load(path) == LOAD
    assert json.loads(path.read_text()) == FIELDS
    assert path.read_text().count("\n") == 2 + 6 + 1 + 2, "a line for each field, and for each layer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["load.json"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path, link = tmp_path / "load.json", tmp_path / "link.json"
    path.write_text("mine")
    link.symlink_to(tmp_path / "nowhere")
    for taken in (path, link):
        with refuses(ValueError, taken, "remove it"):
            write_expert_load(taken, LOAD)
    with refuses(ValueError, "missing", "make it"):
        check_new_file(tmp_path / "missing" / "load.json")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"counts": [[4, 3, 1]]}, ("counts", "2 layers", "got 1")),
        ({"counts": [[4, 3, 1], [4, 4]]}, ("layer 1", "3 whole numbers", "0", "got [4, 4]")),
        ({"counts": [[4, 3, 1], [4, 4, -0.0]]}, ("layer 1", "3 whole numbers")),
        ({"counts": [[4, 3, 1], [4, 5, -1]]}, ("layer 1", "3 whole numbers")),
        ({"counts": [[4, 3, 1], [3, 3, True]]}, ("layer 1", "3 whole numbers")),
        ({"counts": [[4, 3, 1], [4, 3, 2]]}, ("layer 1", "9", "4", "expected 8 (4 tokens x 2")),
        ({"counts": [[4, 3, 1], [5, 2, 1]]}, ("layer 1", "8", "5", "expected 8", "at most 4")),
        ({"counts": {"0": 1}}, ("counts", "list")),
        ({"counts": [1, 2]}, ("counts", "list")),
        ({"tokens": 0}, ("tokens", "1", "got 0")),
        ({"num_experts": 3.0}, ("num_experts", "1", "got 3.0")),
        ({"model": 7}, ("model", "got 7")),
        ({"extra": 1}, ("'extra'", "model, num_layers")),
    ],
)
def test_what_is_no_load_is_refused(tmp_path: Path, change: dict[str, Any], facts: tuple[str, ...]) -> None:
    path = tmp_path / "load.json"
    path.write_text(json.dumps(FIELDS | change))
    with refuses(ValueError, path, *facts, "moejax decode"):
        read_expert_load(path)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("{", ("not valid JSON",)),
        ("[" * 100_000, ("not valid JSON",)),
        ("[]", ("list", "object")),
        ("{}", ("'counts'",)),
        (" " * (LARGEST_FILE + 1), ("too many",)),
    ],
    ids=["half", "nested", "list", "empty", "large"],
)
def test_other_files_are_refused(tmp_path: Path, text: str, facts: tuple[str, ...]) -> None:
    path = tmp_path / "load.json"
    path.write_text(text)
    with refuses(ValueError, path, *facts) as caught:
        read_expert_load(path)
    assert len(str(caught.value)) < 500
    with refuses(ValueError, "gone.json", "moejax decode CHECKPOINT"):
        read_expert_load(tmp_path / "gone.json")
    with refuses(ValueError, tmp_path, "folder", "expert load"):
        read_expert_load(tmp_path)
    with refuses(ValueError, "/dev/null", "device", "expert load"):
        read_expert_load("/dev/null")


def test_the_demo_has_a_load_of_its_own() -> None:
    """It changes what is predicted: a device waits for the one with the popular experts."""
    load, config = read_expert_load("demo"), model_config("demo")
    assert recorded_load("demo", config, load.counts) == load == read_expert_load(DEMO_LOAD)
    assert load.tokens > 500
    evenly, recorded = (
        next(row for row in rows if row.split.mesh.expert == 8 and row.split.dispatch == "replicated")
        for rows in (
            compare_meshes("demo", 8, "cpu", batch_size=8, input_len=64, context=128, expert_load=given)
            for given in (None, "demo")
        )
    )
    assert evenly.load_imbalance == 1.0 and recorded.load_imbalance > 1.2
    assert evenly.decode is not None and recorded.decode is not None
    assert recorded.decode.imbalance > evenly.decode.imbalance


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    path.write_text(DEMO_LOAD.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert read_expert_load(path) == read_expert_load(DEMO_LOAD)
