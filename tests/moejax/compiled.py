"""Reads the text of a compiled XLA program: which arrays it makes in memory, where, and by which operation."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

# Operations that hand on arrays which another one made.
PASS_ON = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "opt-barrier"}
HOST_OPERATIONS = {"infeed", "outfeed", "send", "send-done", "recv", "recv-done"}

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_OPCODE = re.compile(r"\s*([a-z][\w-]*)\(")
_OPERAND = re.compile(r"%([\w.-]+)")


@dataclass(frozen=True, kw_only=True)
class ArrayType:
    """Type of one array, such as bf16[2,56]."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a program. `results` has one entry, or those of a tuple; `text` is all of the line."""

    computation: str
    name: str
    opcode: str
    results: tuple[ArrayType, ...]
    operands: tuple[str, ...]
    text: str


def instructions(program: str) -> list[Instruction]:
    """Every operation that runs as one. What is inside a fusion is not: only its result is an array in memory."""
    found = list(_all_instructions(program))
    if not found:
        raise ValueError("found no instruction in the program's text")
    fused = {name for one in found if one.opcode == "fusion" for name in re.findall(r"calls=%([\w.-]+)", one.text)}
    return [one for one in found if one.computation not in fused]


def made(program: str, opcodes: set[str] | None = None) -> Iterator[tuple[Instruction, ArrayType]]:
    """Arrays that the program makes, with the operation (one of `opcodes`, or any) that does."""
    for one in instructions(program):
        if one.opcode not in PASS_ON and (opcodes is None or one.opcode in opcodes):
            for array in one.results:
                yield one, array


def weight_copies(program: str, weight_size: int) -> list[str]:
    """Operations that make an array of `weight_size` elements, or of several times that: one weight, or a stack.

    Whatever they are called, and whatever the dtype: a copy, a conversion, a transposition, a slice of a stack, a
    concatenation. No other array of the program may have such a size.
    """
    return [one.text.strip() for one, array in made(program) if array.size and array.size % weight_size == 0]


def host_operations(program: str) -> list[str]:
    """Operations that exchange data with the host while the program runs, callbacks into Python included."""
    return [
        one.text.strip()
        for one in instructions(program)
        if one.opcode in HOST_OPERATIONS
        or (one.opcode == "custom-call" and re.search(r'custom_call_target="[^"]*(callback|host)', one.text, re.I))
    ]


def _all_instructions(program: str) -> Iterator[Instruction]:
    computation = ""
    for line in program.splitlines():
        if header := _HEADER.match(line):
            computation = header[1]
        elif name := _NAME.match(line):
            type_text, rest = _split_type(line[name.end() :])
            opcode = _OPCODE.match(rest)
            if opcode is None:
                raise ValueError(f"no operation in the line {line!r}")
            yield Instruction(
                computation=computation,
                name=name[1],
                opcode=opcode[1],
                results=tuple(
                    ArrayType(dtype=dtype, shape=tuple(int(size) for size in shape.split(",") if size))
                    for dtype, shape in _ARRAY.findall(type_text)
                ),
                operands=tuple(_OPERAND.findall(rest.split("), ", 1)[0])),
                text=line,
            )


def _split_type(text: str) -> tuple[str, str]:
    """The type at the beginning of `text`, an array's or a tuple's in parentheses, and what follows it."""
    if not text.startswith("("):
        type_text, _, rest = text.partition(" ")
        return type_text, rest
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"the tuple type does not end in {text!r}")
