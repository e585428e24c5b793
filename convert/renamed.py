"""Tensors under the names, and with the order of rows, of another layout than transformers'."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moejax._convert.errors import CheckpointError, listed
from moejax._convert.mapping import translate
from moejax._convert.tensor_info import TensorInfo


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """The tensor called `pattern` is here called `name`; the fields in both are numbers.

    paired: its rows are those of heads whose rotary halves lie side by side (see `TensorInfo.paired_rows`).
    """

    pattern: str
    name: str
    paired: bool = False


def rename(table: Sequence[Renamed], tensors: Mapping[str, TensorInfo], head_rows: int) -> dict[str, TensorInfo]:
    """`tensors` under their names here; one that is not in the table keeps its own. Nothing is read.

    head_rows: rows of one head.

    Raises:
        CheckpointError: when two have one name, or the rows of one are no heads.
    """
    renamed: dict[str, TensorInfo] = {}
    for info in tensors.values():
        found = ((row, translate(info.name, row.pattern, row.name)) for row in table)
        row, name = next(((row, name) for row, name in found if name is not None), (None, info.name))
        if name in renamed:
            raise CheckpointError(f"{info.file}: {listed([renamed[name].stored_name, info.name])} are one tensor")
        paired = head_rows if row is not None and row.paired else 0
        if paired and (len(info.shape) != 2 or info.shape[0] % paired):
            raise CheckpointError(
                f"{info.file}: tensor {info.name!r} has shape {list(info.shape)}, expected heads of {paired} rows"
            )
        renamed[name] = replace(info, name=name, paired_rows=paired)
    return renamed
