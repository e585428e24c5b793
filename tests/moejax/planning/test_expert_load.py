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
        with pytest.raises(ValueError, match=f"{taken} exists; name another file for the expert load, or remove it"):
            write_expert_load(taken, LOAD)
    with pytest.raises(ValueError, match="there is no folder .*missing; make it first"):
        check_new_file(tmp_path / "missing" / "load.json")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"counts": [[4, 3, 1]]}, "counts must have a row for each of 2 layers, got 1"),
        ({"counts": [[4, 3, 1], [4, 4]]}, r"counts of layer 1 must be 3 whole numbers of at least 0, got \[4, 4\]"),
        ({"counts": [[4, 3, 1], [4, 4, -0.0]]}, "counts of layer 1 must be 3 whole numbers"),
        ({"counts": [[4, 3, 1], [4, 5, -1]]}, "counts of layer 1 must be 3 whole numbers"),
        ({"counts": [[4, 3, 1], [3, 3, True]]}, "counts of layer 1 must be 3 whole numbers"),
        ({"counts": [[4, 3, 1], [4, 3, 2]]}, r"layer 1 add up to 9, the largest is 4; expected 8 \(4 tokens x 2"),
        ({"counts": [[4, 3, 1], [5, 2, 1]]}, "layer 1 add up to 8, the largest is 5; expected 8 .* and at most 4"),
        ({"counts": {"0": 1}}, "counts must be a list with a list for each layer"),
        ({"counts": [1, 2]}, "counts must be a list with a list for each layer"),
        ({"tokens": 0}, "tokens must be a whole number of at least 1, got 0"),
        ({"num_experts": 3.0}, "num_experts must be a whole number of at least 1, got 3.0"),
        ({"model": 7}, "model must be a name, got 7"),
        ({"extra": 1}, "the key 'extra' is unknown; it has model, num_layers"),
    ],
)
def test_what_is_no_load_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "load.json"
    path.write_text(json.dumps(FIELDS | change))
    with pytest.raises(ValueError, match=f"^{path}: no expert load: .*{said}.*; record it again with: moejax decode"):
        read_expert_load(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "expected an object, got list"),
        ("{}", "the key 'counts' is missing"),
        (" " * (LARGEST_FILE + 1), "are too many for an expert load"),
    ],
    ids=["half", "nested", "list", "empty", "large"],
)
def test_other_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "load.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        read_expert_load(path)
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < 500
    with pytest.raises(ValueError, match="gone.json: there is no such file; record one with: moejax decode CHECKPOINT"):
        read_expert_load(tmp_path / "gone.json")
    with pytest.raises(ValueError, match=f"^{tmp_path}: a folder is no file; give the file of an expert load"):
        read_expert_load(tmp_path)
    with pytest.raises(ValueError, match="^/dev/null: a device or pipe is no file; give the file of an expert load"):
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
