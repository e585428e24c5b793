"""Tensors that hold several arrays: their parts are the right ranges of bytes."""

import dataclasses
from pathlib import Path

import numpy as np

from moejax._convert import CheckpointError, Fused, SafetensorsFolder, split_fused
from tests.convert.checkpoint_files import write_single
from tests.messages import refuses

TABLE = (
    Fused("layers.{layer}.gate_up", ("layers.{layer}.{expert}.w1", "layers.{layer}.{expert}.w3"), "expert"),
    Fused("layers.{layer}.down", ("layers.{layer}.{expert}.w2",), "expert"),
)


def split(folder: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    opened = SafetensorsFolder.open(write_single(folder, tensors))
    taken_apart = dataclasses.replace(opened, tensors=split_fused(TABLE, opened.tensors))
    return {name: taken_apart.read(name) for name in taken_apart.tensors}


def test_parts_are_the_rows_of_each_expert(tmp_path: Path) -> None:
    gate_up = np.arange(3 * 8 * 5, dtype=np.float32).reshape(3, 8, 5)
    down = -np.arange(3 * 5 * 4, dtype=np.float32).reshape(3, 5, 4)
    other = np.ones(3, np.float32)
    found = split(tmp_path, {"layers.2.down": down, "other": other, "layers.2.gate_up": gate_up})
    expected = {"other": other}
    for expert in range(3):
        expected[f"layers.2.{expert}.w1"] = gate_up[expert, :4]
        expected[f"layers.2.{expert}.w3"] = gate_up[expert, 4:]
        expected[f"layers.2.{expert}.w2"] = down[expert]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


def test_a_shape_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    with refuses(CheckpointError, "layers.0.gate_up", "[3, 7, 5]", "expected [experts, rows"):
        split(tmp_path, {"layers.0.gate_up": np.zeros((3, 7, 5), np.float32)})
    with refuses(CheckpointError, "layers.0.down", "[7, 5]"):
        split(tmp_path, {"layers.0.down": np.zeros((7, 5), np.float32)})


def test_a_part_that_is_also_there_on_its_own_is_refused(tmp_path: Path) -> None:
    tensors = {"layers.0.down": np.zeros((1, 2, 2), np.float32), "layers.0.0.w2": np.zeros((2, 2), np.float32)}
    with refuses(CheckpointError, "layers.0.0.w2", "twice"):
        split(tmp_path, tensors)


def test_parts_without_end_are_refused_before_they_are_named(tmp_path: Path) -> None:
    """A tensor without elements may have any shape, however small its file."""
    for shape in ((10**9, 2, 0), (10**9, 0, 2), (50_001, 2, 1)):
        with refuses(CheckpointError, "layers.0.down", list(shape)):
            split(tmp_path, {"layers.0.down": np.zeros(shape, np.float16)})
