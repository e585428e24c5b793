"""One collective of a program: what it is, how much a device sends for it, and a table of many."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

CollectiveKind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"]
COLLECTIVE_KINDS: tuple[CollectiveKind, ...] = get_args(CollectiveKind)

# What moves data between devices and is not counted: a program that has one is refused, not counted short.
UNCOUNTED_KINDS = ("ragged-all-to-all", "collective-broadcast", "send", "recv")

ITEM_SIZES = {
    **{"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8},
    **{"float8_e4m3fn": 1, "float8_e5m2": 1, "bfloat16": 2, "float16": 2, "float32": 4, "float64": 8},
}
# HLO's spellings, then those of StableHLO that differ.
DTYPES = {
    **{"pred": "bool", "s8": "int8", "u8": "uint8", "s16": "int16", "u16": "uint16", "s32": "int32", "u32": "uint32"},
    **{"s64": "int64", "u64": "uint64", "f8e4m3fn": "float8_e4m3fn", "f8e5m2": "float8_e5m2"},
    **{"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64"},
    **{"i1": "bool", "i8": "int8", "ui8": "uint8", "i16": "int16", "ui16": "uint16", "i32": "int32", "ui32": "uint32"},
    **{"i64": "int64", "ui64": "uint64", "f8E4M3FN": "float8_e4m3fn", "f8E5M2": "float8_e5m2"},
}


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective as every device executes it.

    Attributes:
        kind: the operation.
        axes: the mesh axes over which its groups run, in the order of the mesh.
        elements: elements per device of the array that the ring formula needs: the operand of an all-reduce,
            reduce-scatter, all-to-all or collective-permute, and the RESULT of an all-gather.
        dtype: the elements' type by its JAX name ("float32", "bfloat16", "int32").
        in_loop: whether it runs in the body or the condition of a while loop, at any depth.
        scope: the `jax.named_scope` path it was traced under ("layer/moe"), "" if none.
    """

    kind: CollectiveKind
    axes: tuple[str, ...]
    elements: int
    dtype: str
    in_loop: bool
    scope: str


def wire_elements(collective: Collective, mesh_shape: Mapping[str, int]) -> Fraction:
    """Elements that each device sends if the collective runs as a ring over its G devices (exact).

    All-reduce: 2 (G - 1) / G of the operand. All-gather: (G - 1) / G of the result. Reduce-scatter and all-to-all:
    (G - 1) / G of the operand. A collective-permute sends its operand once, from every device that has a target.
    """
    group = math.prod(mesh_shape[axis] for axis in collective.axes)
    match collective.kind:
        case "all-reduce":
            share = Fraction(2 * (group - 1), group)
        case "all-gather" | "reduce-scatter" | "all-to-all":
            share = Fraction(group - 1, group)
        case "collective-permute":
            share = Fraction(1)
    return share * collective.elements


def collectives_table(collectives: Iterable[Collective], mesh_shape: Mapping[str, int]) -> str:
    """A table in plain text: a row for equal collectives with their count, then the totals per device.

    Elements, bytes and wire bytes of a row are those of one of its collectives. The scope is left out where none has
    one; to count over all layers, replace the scope of each by a shorter one first.
    """
    counts = Counter(collectives)
    with_scope = any(collective.scope for collective in counts)
    rows = [("kind", "axes", "loop", "dtype", "count", "elements", "bytes", "wire bytes", "scope")]
    total_bytes, total_wire = 0, Fraction(0)
    for collective, count in counts.items():
        item_size = ITEM_SIZES[collective.dtype]
        wire = wire_elements(collective, mesh_shape) * item_size
        total_bytes += count * collective.elements * item_size
        total_wire += count * wire
        sizes = (str(count), f"{collective.elements:,}", f"{collective.elements * item_size:,}", _decimal(wire))
        loop = "yes" if collective.in_loop else "no"
        rows.append((collective.kind, ",".join(collective.axes), loop, collective.dtype, *sizes, collective.scope))
    columns = list(zip(*rows, strict=True))[: 9 if with_scope else 8]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(
            # The four sizes are aligned right.
            cell.rjust(width) if 4 <= column < 8 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]
    total = f"{counts.total()} collectives, {total_bytes:,} bytes, {_decimal(total_wire)} wire bytes per device"
    return "\n".join([*lines, total])


def dtype_name(spelling: str) -> str:
    """The JAX name of an element type as HLO or StableHLO spells it.

    Raises:
        ValueError: for a type that is not known here.
    """
    if spelling not in DTYPES:
        raise ValueError(f"a collective of element type {spelling!r}; the known ones are {', '.join(DTYPES)}: add it")
    return DTYPES[spelling]


def static_elements(sizes: Iterable[str]) -> int:
    """Elements of an array of these sizes, as printed.

    Raises:
        ValueError: for a size that the program does not know before it runs.
    """
    listed = list(sizes)
    if dynamic := [size for size in listed if not size.isdecimal()]:
        raise ValueError(f"a collective of an array with the dynamic size {dynamic[0]!r}; expected static shapes")
    return math.prod(int(size) for size in listed)


def scope_of(op_name: str) -> str:
    """The `jax.named_scope` path in the name that JAX gives an operation.

    "jit(f)/shard_map/while/body/layer/moe/psum" is "layer/moe": the operation itself and the names of JAX's own
    structure (jit, shard_map, loops, branches, vmap) are no scopes.
    """
    # XLA names merged operations "path/(a/psum:b/psum)": what they share is their scope; or "a/psum;b/psum", for TPUs.
    op_name = op_name.partition(";")[0]
    path = op_name.partition("/(")[0] if "/(" in op_name else op_name.rpartition("/")[0]
    return enclosing_scope(path)


def enclosing_scope(path: str) -> str:
    """As `scope_of`, for the name of an operation whose body is entered: a call, a shard_map."""
    unwrapped = 1
    while unwrapped:  # vmap wraps a scope, a jit or nothing: "vmap(vmap(moe))"
        path, unwrapped = re.subn(r"(?<![^/(])vmap\(([^()]*|jit\([^()]*\))\)", r"\1", path)
    calls = r"closed_call|eval_jaxpr|checkpoint"  # the second since JAX 0.11
    structure = rf"/(?:jit\([^/]*\)|shard_map|while/(?:body|cond)|while|cond/branch_\d+_fun|{calls})(?=/)"
    return "/".join(part for part in re.sub(structure, "", f"/{path}/").split("/") if part)


def _decimal(value: Fraction) -> str:
    return f"{value.numerator:,}" if value.denominator == 1 else f"{float(value):,.1f}"
