"""Tensors that hold several arrays of a model one after the other, taken apart by name."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from convert.errors import CheckpointError
from convert.header import TensorInfo
from convert.mapping import translate


@dataclass(frozen=True)
class Fused:
    """The tensor called `pattern`, [count, rows, columns], is `count` times the tensors `parts`, in equal shares of
    rows.

    The field called `index` of `parts` is the position on the leading axis; the other fields are those of `pattern`:
    `Fused("layers.{layer}.gate_up_proj", ("layers.{layer}.{expert}.w1", "layers.{layer}.{expert}.w3"), "expert")`.
    """

    pattern: str
    parts: tuple[str, ...]
    index: str


def split_fused(table: Sequence[Fused], tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """`tensors` with every fused one replaced by its parts, which are ranges of the same bytes: nothing is copied.

    Raises:
        CheckpointError: when a fused tensor cannot be divided so, or a part is also there as a tensor of its own.
    """
    split: dict[str, TensorInfo] = {}
    for info in tensors.values():
        for part in _parts(table, info):
            if part.name in split:
                raise CheckpointError(
                    f"{info.file}: {part.name!r} is there twice, in a fused tensor and on its own; remove one of them"
                )
            split[part.name] = part
    return split


def _parts(table: Sequence[Fused], info: TensorInfo) -> Iterator[TensorInfo]:
    fused = next((row for row in table if translate(info.name, row.pattern, row.pattern) is not None), None)
    if fused is None:
        yield info
        return
    if len(info.shape) != 3 or info.shape[1] % len(fused.parts):
        raise CheckpointError(
            f"{info.file}: tensor {info.name!r} has shape {list(info.shape)}, expected [{fused.index}s, rows, columns] "
            f"with rows for {len(fused.parts)} equal parts; this is not how transformers fuses experts"
        )
    count, rows, columns = info.shape
    shape = (rows // len(fused.parts), columns)
    # Leading axes come first in memory, so that each part is one range of bytes.
    nbytes = info.nbytes // max(1, count * len(fused.parts)) if math.prod(info.shape) else 0
    start = info.start
    for number in range(count):
        for pattern in fused.parts:
            name = translate(info.name, fused.pattern, pattern.replace(f"{{{fused.index}}}", str(number)))
            assert name is not None, "the pattern has matched before"
            yield replace(info, name=name, shape=shape, start=start, stop=start + nbytes)
            start += nbytes
