"""Reads the collectives of a compiled program from its text (HLO)."""

import math
import re
from collections.abc import Mapping

from moejax._sharding.collectives.collective import (
    COLLECTIVE_KINDS,
    UNCOUNTED_KINDS,
    Collective,
    CollectiveKind,
    dtype_name,
    scope_of,
    static_elements,
)
from moejax._sharding.collectives.device_groups import axes_of_groups, axes_of_pairs, hlo_groups
from moejax._sharding.collectives.program import Body, Call, executed

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
# Name, type (one word, or a tuple in parentheses), opcode, operands and attributes.
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z\d\-]*)\((.*)")
_CALLEES = re.compile(
    r"\b(to_apply|calls|body|condition|branch_computations|true_computation|false_computation|called_computations)="
    r"(\{[^}]*\}|[^\s,}]+)"
)
_GROUPS = re.compile(
    r"replica_groups=(mesh\[[^{]*\{[^}]*\}|\{(?:\{[\d,]*\},?)*\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?|\S+)"
)
_PAIRS = re.compile(r"source_target_pairs=(\{(?:\{\d+,\d+\},?)*\})")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_ARRAY = re.compile(r"(\w+)\[([^\]]*)\]")


def compiled_collectives(text: str, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """The collectives that a compiled program executes, in its order, from `compiled.as_text()`.

    Those in a loop are given once, with `in_loop`; those of each branch of a conditional are all given. Independent
    collectives that XLA merged into one tuple-shaped operation are given one by one, each with its own scope; an
    all-to-all whose operands are its parts for each peer is one collective; an asynchronous start and done are one.
    Collectives over a single device move nothing and are left out.

    XLA:CPU widens bfloat16 and float16 collectives to float32: count those in the lowered program.

    Args:
        text: HLO text of a program partitioned over the mesh.
        mesh_shape: sizes of the mesh axes by name, in order (`mesh.shape`).

    Raises:
        ValueError: for groups that are no product of mesh axes, a kind of collective that is not counted here, or a
            text that is no compiled program.
    """
    bodies: dict[str, Body] = {}
    entry, name, lines = "", "", list[str]()
    for line in text.splitlines():
        if header := _COMPUTATION.fullmatch(line):
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif line.startswith("}") and name:
            bodies[name] = _body(lines, mesh_shape)
            name = ""
        elif name:
            lines.append(line)
    if not entry:
        raise ValueError(f"no ENTRY computation in a text of {len(text)} characters; expected compiled.as_text()")
    return executed(bodies, entry)


def _body(lines: list[str], mesh_shape: Mapping[str, int]) -> Body:
    """What one computation does: its collectives and the computations that it calls."""
    items: list[Collective | Call] = []
    member_scopes = _member_scopes(lines)
    for match in filter(None, map(_INSTRUCTION.match, lines)):
        name, shape, opcode, rest = match.groups()
        attributes = _STRING.sub('""', rest)
        kind = opcode.removesuffix("-start")
        if kind in UNCOUNTED_KINDS and "is_host_transfer=true" not in attributes:
            raise ValueError(f"got a {kind} ({name}); only {', '.join(COLLECTIVE_KINDS)} can be counted")
        if kind in COLLECTIVE_KINDS:
            axes = _axes(kind, attributes, mesh_shape)
            op_name = _OP_NAME.search(rest)
            own_scope = scope_of(op_name[1]) if op_name else ""
            payload = shape if opcode == kind else _payload_of_start(kind, shape)
            group = math.prod(mesh_shape[axis] for axis in axes)
            for member, (elements, dtype) in enumerate(_members(kind, payload, group) if axes else []):
                scope = member_scopes.get((name, member), own_scope)
                items.append(
                    Collective(kind=kind, axes=axes, elements=elements, dtype=dtype, in_loop=False, scope=scope)
                )
        else:
            for how, callees in _CALLEES.findall(attributes):
                for callee in callees.strip("{}").split(","):
                    called = callee.strip().removeprefix("%")
                    items.append(Call(callee=called, in_loop=how in ("body", "condition"), scope=""))
    return items


def _axes(kind: CollectiveKind, attributes: str, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes that an operation with these attributes runs over; () if nothing moves."""
    if kind == "collective-permute":
        pairs = _PAIRS.search(attributes)
        if pairs is None:
            raise ValueError(
                f"a collective-permute without source_target_pairs; pass the text as XLA prints it: {attributes}"
            )
        return axes_of_pairs(hlo_groups(pairs[1], devices=0) if pairs[1] != "{}" else [], mesh_shape)
    groups = _GROUPS.search(attributes)
    if groups is None:
        raise ValueError(f"{kind} without replica_groups; pass the text as XLA prints it: {attributes}")
    return axes_of_groups(hlo_groups(groups[1], math.prod(mesh_shape.values())), mesh_shape)


def _members(kind: CollectiveKind, payload: str, group: int) -> list[tuple[int, str]]:
    """(elements, dtype) of each collective in an operation whose result has the type `payload`."""
    arrays = [
        (static_elements(dims.split(",") if dims else []), dtype_name(spelling))
        for spelling, dims in _ARRAY.findall(payload)
    ]
    match kind:
        case "reduce-scatter":  # the type shows results; the ring formula needs operands
            return [(elements * group, dtype) for elements, dtype in arrays]
        case "all-to-all":  # as a tuple it has an array for each peer
            return [(sum(elements for elements, _ in arrays), arrays[0][1])]
        case _:
            return arrays


def _payload_of_start(kind: CollectiveKind, shape: str) -> str:
    """The type of the results in the type of an asynchronous start: (operands, results, more), or just the results."""
    parts = _tuple_parts(shape)
    if kind == "all-reduce" and not (parts and parts[0].startswith("(")):
        return shape
    return parts[1]


def _tuple_parts(shape: str) -> list[str]:
    """`(f32[2]{0}, (u32[], u32[]))` is [`f32[2]{0}`, `(u32[], u32[])`]; a type that is no tuple is []."""
    if not shape.startswith("("):
        return []
    parts, depth = [""], 0
    for character in shape[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _member_scopes(lines: list[str]) -> dict[tuple[str, int], str]:
    """Scopes of the members of merged operations by (operation, index): the operation itself has but one name."""
    starts: dict[str, str] = {}
    scopes: dict[tuple[str, int], str] = {}
    for match in filter(None, map(_INSTRUCTION.match, lines)):
        name, _, opcode, rest = match.groups()
        operand = re.match(r"%?([\w.\-]+)\)", rest)
        if operand and opcode.endswith("-done"):
            starts[name] = operand[1]
        index, op_name = re.search(r"\bindex=(\d+)", rest), _OP_NAME.search(rest)
        if operand and index and op_name and opcode == "get-tuple-element":
            scopes.setdefault((starts.get(operand[1], operand[1]), int(index[1])), scope_of(op_name[1]))
    return scopes
