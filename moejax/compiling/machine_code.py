"""Reads a kernel's machine code as `nvdisasm -c` prints it, and what ptxas says of it. Imports no JAX."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from moejax.compiling.flight import NEVER, in_flight

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_LABEL = re.compile(r"^\s*(\.L_[\w.]+):")
_BRANCH = re.compile(r"\bBRA(?:\.\w+)*\s.*?(?:`\((\.L_[\w.]+)\)|0x([0-9a-f]+))")
_GUARD = re.compile(r"^@!?U?P\w+\s+")
_TENSOR = re.compile(r"^(?:HGMMA|HMMA|IMMA|QGMMA|UTC\w*MMA)")
_BULK = re.compile(r"^(?:UBLKCP|UTMALDG)")  # copies by the tensor memory accelerator, whose bytes no operand says
TURNS = 8  # more than any kernel has groups of copies under way
SPILL = re.compile(r"(\d+) bytes spill (?:stores|loads)")


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction: the byte where it stands, its operation (`LDG.E.128`) and its operands."""

    at: int
    operation: str
    operands: str


@dataclass(frozen=True, kw_only=True)
class Code:
    """What a kernel's threads do in the loop that loads most (the whole kernel where none loads anything).

    tensor: instructions of tensor cores, in the whole kernel.  tensor_kind: their names.
    loaded: bytes that a thread loads from global memory per turn.  widths: its loads by their bytes, widest first.
    asynchronous: how many of them go to shared memory while the thread goes on.  bulk: copies of whole blocks.
    flight, flight_mean: bytes of a thread on their way, at most, and on average where it waits for some.
    instructions: per turn.  fused, apart: multiplications and additions in float32, as one and as two instructions.
    local: instructions on local memory, in the whole kernel: spills and arrays.
    """

    tensor: int
    tensor_kind: str
    loaded: int
    widths: dict[int, int]
    asynchronous: int
    bulk: int
    flight: int
    flight_mean: int
    instructions: int
    fused: int
    apart: int
    local: int

    def as_json(self) -> dict:
        return asdict(self) | {"widths": {str(width): count for width, count in self.widths.items()}}


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """What ptxas says of a kernel.

    shared: bytes of shared memory that its code fixes.  spilled: bytes a thread stores and loads for want of registers.
    """

    registers: int
    spilled: int
    shared: int


def read_assembled(said: str) -> Assembled:
    """What `ptxas -v` says of one kernel.

    Raises:
        ValueError: for anything else.
    """
    registers = re.search(r"Used (\d+) registers", said)
    if registers is None:
        raise ValueError(f"expected what ptxas -v says of a kernel, got {said.strip()[:200]!r}")
    shared = re.search(r"(\d+) bytes smem", said)
    return Assembled(
        registers=int(registers[1]),
        spilled=sum(map(int, SPILL.findall(said))),
        shared=int(shared[1]) if shared else 0,
    )


def read_code(text: str) -> Code:
    """The machine code of one kernel.

    Raises:
        ValueError: where there is none.
    """
    instructions, labels = _instructions(text)
    if not instructions:
        raise ValueError(f"no instruction in a text of {len(text)} characters; expected what nvdisasm -c prints")
    loop = _loading_loop(instructions, labels)
    body = loop or instructions
    loads = [one for one in body if _is_load(one)]
    widths = Counter(width(one.operation) for one in loads)
    counted = Counter(one.operation.partition(".")[0] for one in body)
    tensor = Counter(found[0] for one in instructions if (found := _TENSOR.match(one.operation)))
    on_their_way = in_flight([(one.operation, one.operands) for one in body], turns=TURNS if loop else 1)
    return Code(
        tensor=tensor.total(),
        tensor_kind="+".join(sorted(tensor)),
        loaded=sum(size * count for size, count in widths.items()),
        widths=dict(sorted(widths.items(), reverse=True)),
        asynchronous=sum(one.operation.startswith("LDGSTS") for one in loads),
        bulk=sum(bool(_BULK.match(one.operation)) for one in instructions),
        flight=on_their_way.most,
        flight_mean=on_their_way.mean,
        instructions=len(body),
        fused=counted["FFMA"] + counted["FFMA2"],
        apart=counted["FMUL"] + counted["FADD"] + counted["FMUL2"] + counted["FADD2"],
        local=sum(one.operation.startswith(("LDL", "STL")) for one in instructions),
    )


def width(operation: str) -> int:
    """Bytes that a load of a thread brings: 16 for `LDG.E.128`."""
    if ".128" in operation:
        return 16
    if ".64" in operation:
        return 8
    if re.search(r"\.[US]16\b", operation):
        return 2
    return 1 if re.search(r"\.[US]8\b", operation) else 4


def _instructions(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """All instructions, and where each label stands."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            waiting.append(label[1])
        elif one := _LINE.search(line):
            at, (operation, _, operands) = int(one[1], 16), _GUARD.sub("", one[2]).partition(" ")
            labels |= dict.fromkeys(waiting, at)
            waiting.clear()
            found.append(Instruction(at=at, operation=operation, operands=operands.strip()))
    return found, labels


def _loops(instructions: Sequence[Instruction], labels: dict[str, int]) -> Iterator[list[Instruction]]:
    """Everything between a branch backwards and where it leads."""
    for one in instructions:
        branch = _BRANCH.search(f"{one.operation} {one.operands}")
        if branch is None:
            continue
        to = labels.get(branch[1], one.at) if branch[1] else int(branch[2], 16)
        if to < one.at:
            yield [other for other in instructions if to <= other.at <= one.at]


def _loading_loop(instructions: Sequence[Instruction], labels: dict[str, int]) -> Sequence[Instruction]:
    """The loop that loads most, the shortest of several; empty where no loop loads."""
    loading = [loop for loop in _loops(instructions, labels) if any(map(_is_load, loop))]
    return max(loading, key=lambda loop: (_loaded(loop), -len(loop)), default=())


def _loaded(body: Sequence[Instruction]) -> int:
    return sum(width(one.operation) for one in body if _is_load(one))


def _is_load(one: Instruction) -> bool:
    return one.operation.startswith(("LDG.", "LDGSTS")) and not one.operands.endswith(NEVER)
