"""Tensors that hold several arrays of a model one after the other, taken apart by name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from moejax._convert.errors import CheckpointError
from moejax._convert.mapping import translate
from moejax._convert.tensor_info import TensorInfo

MOST_PARTS = 50_000  # of one tensor; they are named one by one


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
    """`tensors` with every fused one replaced by its parts, each a part of the same stored tensor: nothing is read.

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
    if not rows or not columns or count > MOST_PARTS:
        raise CheckpointError(
            f"{info.file}: tensor {info.name!r} has shape {list(info.shape)}, of which no model's experts are made "
            f"(at most {MOST_PARTS}, none empty)"
        )
    shape = (rows // len(fused.parts), columns)
    for number in range(count):
        for place, pattern in enumerate(fused.parts):
            name = translate(info.name, fused.pattern, pattern.replace(f"{{{fused.index}}}", str(number)))
            assert name is not None, "the pattern has matched before"
            yield replace(info, name=name, shape=shape, leading=(number,), first_row=place * shape[0])
