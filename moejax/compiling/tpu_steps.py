"""What a step of a program for TPUs does, from its compiled text (HLO). Imports no JAX."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([a-z][a-z\d\-]*)\(%?([\w.\-]*)")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
MOSAIC = "tpu_custom_call"  # a kernel written by hand, or XLA's own grouped products
# What computes: each is an operation of the core by itself.
_COMPUTES = ("fusion", "sort", "convolution", "dot", "scatter", "gather", "reduce", "dynamic-update-slice")
_COLLECTIVE = re.compile(
    r"^(?:all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute)(-start|-done)?$"
)


@dataclass(frozen=True, kw_only=True)
class Operations:
    """What a step does, one after another.

    computing: fusions and others, each once, however often a loop repeats it.  kernels: of Mosaic.
    loops, in_loops: loops within the step, and the operations in them.
    copies: to and from the core's own memory, begun ahead.
    collectives: between devices.  overlapped: those with something computed between their start and their end.
    """

    computing: int
    kernels: int
    loops: int
    in_loops: int
    copies: int
    collectives: int
    overlapped: int


@dataclass(frozen=True, kw_only=True)
class _Operation:
    name: str
    opcode: str
    operand: str
    line: str


def count_step(hlo: str, *, in_loop: bool) -> Operations:
    """The operations of a turn of the outermost loop (`in_loop`), or of the whole program.

    Raises:
        ValueError: for a text that is no compiled program, or without one such loop.
    """
    bodies, entry = _computations(hlo)
    if not entry:
        raise ValueError(f"no ENTRY computation in a text of {len(hlo)} characters; expected compiled.as_text()")
    step = entry
    if in_loop:
        loops = list(_loops(bodies[entry]))
        if len(loops) != 1:
            raise ValueError(f"expected one outermost loop in a decoding program, got {len(loops)}")
        step = loops[0]
    inner = [operation for loop in _loops(bodies[step]) for operation in _all(bodies, loop)]
    operations = [*bodies[step], *inner]
    counted = Counter(one.opcode for one in operations)
    return Operations(
        computing=sum(map(_computes, operations)),
        kernels=sum(_is_kernel(one) for one in operations),
        loops=counted["while"],
        in_loops=sum(map(_computes, inner)),
        copies=counted["copy-start"] + counted["slice-start"],
        collectives=sum(bool(found and found[1] != "-done") for found in map(_collective, operations)),
        overlapped=_overlapped(bodies[step]),
    )


def _computations(hlo: str) -> tuple[dict[str, list[_Operation]], str]:
    bodies: dict[str, list[_Operation]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[2]
            bodies[name] = []
            entry = name if header[1] else entry
        elif name and (found := _INSTRUCTION.match(line)):
            bodies[name].append(_Operation(name=found[1], opcode=found[2], operand=found[3], line=line))
    return bodies, entry


def _loops(operations: list[_Operation]) -> Iterator[str]:
    """The bodies of the loops among these."""
    for one in operations:
        if one.opcode == "while" and (body := _BODY.search(one.line)):
            yield body[1]


def _all(bodies: Mapping[str, list[_Operation]], name: str) -> Iterator[_Operation]:
    yield from bodies[name]
    for loop in _loops(bodies[name]):
        yield from _all(bodies, loop)


def _computes(one: _Operation) -> bool:
    return one.opcode in _COMPUTES or _is_kernel(one)


def _is_kernel(one: _Operation) -> bool:
    target = _TARGET.search(one.line)
    return one.opcode == "custom-call" and target is not None and target[1] == MOSAIC


def _collective(one: _Operation) -> re.Match[str] | None:
    return _COLLECTIVE.match(one.opcode)


def _overlapped(operations: list[_Operation]) -> int:
    found, open_ = 0, dict[str, bool]()
    for one in operations:
        collective = _collective(one)
        if collective and collective[1] == "-start":
            open_[one.name] = False
        elif collective and collective[1] == "-done":
            found += open_.pop(one.operand, False)
        elif _computes(one):
            open_ = dict.fromkeys(open_, True)
    return found
