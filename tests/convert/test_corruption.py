"""Random damage: a damaged checkpoint opens as the reference implementation would read it, or is a CheckpointError."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from moejax._convert import CheckpointError, SafetensorsFolder
from tests.convert.checkpoint_files import INDEX, SINGLE, entry, file_bytes, tensor_bytes, write_sharded

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = {
    FIRST: {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)},
    SECOND: {"c": np.ones((), np.float64)},
}
VALID = tensor_bytes(SHARDS[FIRST])
HEADER_END = 8 + int.from_bytes(VALID[:8], "little")
DATA = VALID[HEADER_END:]
VALID_INDEX = json.dumps({"weight_map": {name: file for file, tensors in SHARDS.items() for name in tensors}}).encode()
BOUNDED = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def bad_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose one file each example writes anew: without an index, damaged names may open as well."""
    return tmp_path_factory.mktemp("bad_file")


@pytest.fixture(scope="module")
def bad_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which each example writes only the index anew."""
    return write_sharded(tmp_path_factory.mktemp("bad_index"), SHARDS)


def check(folder: Path) -> bool:
    """Whether `folder` opens; if so, every tensor reads or is a CheckpointError, and the reference agrees."""
    try:
        opened = SafetensorsFolder.open(folder)
    except CheckpointError as error:
        assert str(error).isprintable()
        return False
    for name in opened.tensors:
        try:
            assert opened.read(name).shape == opened.tensors[name].shape
        except CheckpointError as error:
            assert str(error).isprintable()
    for file in {tensor.file for tensor in opened.tensors.values()}:
        with safe_open(file, "np") as reference:
            slices = {name: reference.get_slice(name) for name in reference.keys()}  # noqa: SIM118
        ours = {name: tensor for name, tensor in opened.tensors.items() if tensor.file == file}
        assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in ours.items()} == {
            name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()
        }
    return True


def test_the_undamaged_checkpoint_opens(tmp_path: Path) -> None:
    assert check(write_sharded(tmp_path, SHARDS))


# (position, what to do there, byte): overwrite, insert before, or delete.
EDITS = st.lists(st.tuples(st.integers(0), st.sampled_from("oid"), st.integers(0, 255)), min_size=1, max_size=2)


def edited(raw: bytes, end: int, edits: list[tuple[int, str, int]]) -> bytes:
    """`raw` with `edits` made before byte `end`."""
    damaged = bytearray(raw)
    for position, what, byte in edits:
        at = position % end
        damaged[at : at + (what != "i")] = b"" if what == "d" else bytes([byte])
    return bytes(damaged)


@BOUNDED
@given(edits=EDITS)
def test_damaged_bytes_of_a_header(bad_file: Path, edits: list[tuple[int, str, int]]) -> None:
    (bad_file / SINGLE).write_bytes(edited(VALID, HEADER_END, edits))
    check(bad_file)


@BOUNDED
@given(edits=EDITS)
def test_damaged_bytes_of_an_index(bad_index: Path, edits: list[tuple[int, str, int]]) -> None:
    (bad_index / INDEX).write_bytes(edited(VALID_INDEX, len(VALID_INDEX), edits))
    check(bad_index)


# Valid JSON gets past the parser, where most random bytes end.
INTEGERS = st.integers(0, 40) | st.sampled_from([-1, 2**31, 2**62, 2**63, 2**64, 10**4299])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | INTEGERS
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["F32", "I8", "F4", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)
DTYPE = st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "F4", "F6_E2M3"])
VALID_ENTRIES = [entry("F32", [2, 3], 0, 24), entry("F16", [4], 24, 32), entry("F64", [0, 9], 24, 24)]
FIELD = st.sampled_from(["dtype", "shape", "data_offsets", "more"])
VALUE = DTYPE | st.lists(st.integers(0, 6), max_size=3) | st.lists(INTEGERS, max_size=3) | JSON
NAME = st.sampled_from("abc")


@BOUNDED
@given(
    names=st.permutations("abc"), changes=st.lists(st.tuples(NAME, FIELD, VALUE), max_size=2), metadata=st.none() | JSON
)
def test_headers_of_valid_json(
    bad_file: Path, names: list[str], changes: list[tuple[str, str, object]], metadata: object
) -> None:
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    for name, valid in zip(names, VALID_ENTRIES, strict=True):
        header[name] = valid | {field: value for changed, field, value in changes if changed == name}
    (bad_file / SINGLE).write_bytes(file_bytes(header, DATA))
    check(bad_file)


@BOUNDED
@given(changes=st.dictionaries(st.sampled_from("abcd"), st.sampled_from([FIRST, SECOND]) | JSON, max_size=2))
def test_indexes_of_valid_json(bad_index: Path, changes: dict[str, object]) -> None:
    weight_map = json.loads(VALID_INDEX)["weight_map"] | changes
    (bad_index / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    check(bad_index)
