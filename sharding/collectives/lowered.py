"""Reads the collectives of a lowered program from its text (StableHLO)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from moejax._sharding.collectives.collective import (
    COLLECTIVE_KINDS,
    Collective,
    CollectiveKind,
    dtype_name,
    enclosing_scope,
    scope_of,
    static_elements,
)
from moejax._sharding.collectives.device_groups import axes_of_groups, axes_of_pairs, stablehlo_groups
from moejax._sharding.collectives.program import Body, Call, executed, within

_KINDS: dict[str, CollectiveKind] = {kind.replace("-", "_"): kind for kind in COLLECTIVE_KINDS}
_COLLECTIVE = re.compile(rf'"stablehlo\.({"|".join(_KINDS)})"')
_UNCOUNTED = re.compile(r"stablehlo\.(collective_broadcast|send|recv)\b|custom_call @(ragged_all_to_all)\b")
_FUNCTION = re.compile(r'func\.func (?:public |private )?@("[^"]*"|[\w.$]+)')
_CALL = re.compile(r'(?:\bcall |decomposition = )@("[^"]*"|[\w.$]+)')
_GROUPS = re.compile(
    r"(?:replica_groups|source_target_pairs) = "
    r"(dense<[^>]*> : tensor<[^>]*>|#stablehlo\.replica_group_mesh_axes<[^\]]*\]>|[^,]*)"
)
_MESH = re.compile(r"sdy\.mesh @(\S+) = <(.*?)>(?: \{.*)?")
_TYPES = re.compile(r" : \(([^()]*)\) -> \(?([^()]*)")
_TENSOR = re.compile(r"tensor<((?:[\d?]+x)*)([^>]*)>")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LOCATION = re.compile(r"loc\((#loc\d*)\)$")
_NAMED_LOCATION = re.compile(r'(#loc\d*) = loc\("((?:[^"\\]|\\.)*)"(?:\(.*\))?\)')


@dataclass(frozen=True, kw_only=True)
class _Region:
    """A region of an operation: the line that opened it, what it does so far."""

    opener: str
    line_number: int
    items: list[Collective | Call] = field(default_factory=list)


class _Program(NamedTuple):
    """What lines refer to. names: of locations.  meshes: what the text says of each.  mesh_shape: the caller's mesh."""

    names: Mapping[str, str]
    meshes: Mapping[str, str]
    mesh_shape: Mapping[str, int]


def lowered_collectives(text: str, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """The collectives that a lowered program asks for, in its order, from `lowered.as_text()`.

    They are those written inside `shard_map`, with the dtype they were written with; those that sharding constraints
    lead to are made later, by the compiler. `lowered.as_text(debug_info=True)` has their scopes too. A function that
    is called many times is counted as often; loops, branches and single devices are as in `compiled_collectives`.

    Args:
        text: StableHLO text.
        mesh_shape: sizes of the mesh axes by name, in order (`mesh.shape`).

    Raises:
        ValueError: for groups that are no product of mesh axes, a kind of collective that is not counted here, or a
            text that is no lowered program.
    """
    lines = [line.strip() for line in text.splitlines()]
    program = _Program(
        names={location[1]: location[2] for location in filter(None, map(_NAMED_LOCATION.fullmatch, lines))},
        meshes={mesh[1]: mesh[2] for mesh in filter(None, map(_MESH.match, lines))},
        mesh_shape=mesh_shape,
    )
    bodies: dict[str, Body] = {}
    stack = [_Region(opener="", line_number=0)]
    for number, line in enumerate(lines):
        opener = line
        for brace in re.findall("[{}]", _STRING.sub("", line)):
            if brace == "{":
                stack.append(_Region(opener=opener, line_number=number))
                continue
            region = stack.pop()
            if region.line_number == number:
                continue  # attributes
            # In `} do {` and `}, {` the next region is one of the same operation.
            opener = region.opener
            if function := _FUNCTION.match(region.opener):
                bodies[function[1]] = region.items
            else:
                stack[-1].items.extend(_closed(region, line, program))
        if not line.endswith("({"):  # else its types stand where its region closes
            stack[-1].items.extend(_operation(line, program))
    if "main" not in bodies:
        raise ValueError(f"no function @main in a text of {len(text)} characters; expected lowered.as_text()")
    return executed(bodies, "main")


def _closed(region: _Region, line: str, program: _Program) -> Iterator[Collective | Call]:
    """What an operation does whose region ends at `line`: a loop, a shard_map, a collective or a branch."""
    # The names inside a shard_map leave out its own; those inside a loop do not.
    scope = enclosing_scope(_name(line, program.names)) if "sdy.manual_computation" in region.opener else ""
    yield from (within(item, in_loop=region.opener == "cond {", scope=scope) for item in region.items)
    if _COLLECTIVE.search(region.opener):
        yield from _operation(f"{region.opener} {line}", program)


def _operation(line: str, program: _Program) -> Iterator[Collective | Call]:
    """What a complete operation without regions does, or a collective with its reduction left out."""
    uncounted = _UNCOUNTED.search(line)
    if uncounted and "is_host_transfer = true" not in line:
        raise ValueError(
            f"got a {uncounted[1] or uncounted[2]}; only {', '.join(COLLECTIVE_KINDS)} can be counted: {line}"
        )
    if call := _CALL.search(line):
        yield Call(callee=call[1], in_loop=False, scope=enclosing_scope(_name(line, program.names)))
    if collective := _COLLECTIVE.search(line):
        kind = _KINDS[collective[1]]
        groups, types = _GROUPS.search(line), _TYPES.search(line)
        if groups is None or types is None:
            raise ValueError(f"{kind} without groups or types; pass the text as JAX prints it: {line}")
        devices = stablehlo_groups(groups[1], program.meshes)
        axes = (axes_of_pairs if kind == "collective-permute" else axes_of_groups)(devices, program.mesh_shape)
        for dims, spelling in _TENSOR.findall(types[2] if kind == "all-gather" else types[1]) if axes else []:
            yield Collective(
                kind=kind,
                axes=axes,
                elements=static_elements(dims.split("x")[:-1]),
                dtype=dtype_name(spelling),
                in_loop=False,
                scope=scope_of(_name(line, program.names)),
            )


def _name(line: str, names: Mapping[str, str]) -> str:
    """The name of the location at the end of a line; "" without one."""
    location = _LOCATION.search(line)
    return names.get(location[1], "") if location else ""
