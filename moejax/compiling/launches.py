"""What a program makes a GPU do: kernels, command buffers, loops, from XLA's text of its thunks. Imports no JAX."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from moejax._sharding.collectives.collective import scope_of

_THUNK = re.compile(r"^( *)(\d+): (k[A-Z]\w*)\s*\[[^\]]*\]\s*(.*)$")
_HEADER = re.compile(r"^ *[a-z][\w ]*:\s*$")  # of a loop's condition and body, which are further in than the loop
_PAIR = re.compile(r"async_id=(\d+)")
_LAUNCH = re.compile(
    r"^(\S+) grid: \[(\d+), (\d+), (\d+)\] threads: \[(\d+), (\d+), (\d+)\]\s+shared_memory: (\d+) bytes"
)
_METADATA = re.compile(r'profile_annotation: "([^"]*)"\s+thunk_id: (\d+)')
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?\b([a-z][a-z\d\-]*)\(", re.M)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_KERNELS = ("kCustomKernel", "kKernel", "kGemm", "kCublasLtMatmul", "kCudnn")
_COPIES = ("kCopy", "kMemset", "kMemzero", "kMemset32BitValue")
_COLLECTIVES = re.compile(r"^k(?:AllReduce|AllGather|ReduceScatter|AllToAll|RaggedAllToAll|CollectivePermute)$")
_STRUCTURE = ("kCommandBuffer", "kWhile", "kConditional", "kSequential", "kAsyncStart", "kAsyncDone", "kPartitionId")
TRITON_CALL = 'custom_call_target="__gpu$xla.gpu.triton"'  # a kernel of Pallas's Triton backend


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One kernel as it is launched. shared: bytes of shared memory of a block."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int


@dataclass(kw_only=True)
class Thunk:
    """A node of the tree of thunks. number: XLA's, 0 for command buffers.

    pair: what an asynchronous start and its end share.
    """

    number: int
    kind: str
    pair: str = ""
    launch: Launch | None = None
    inside: list["Thunk"] = field(default_factory=list)

    def walk(self) -> Iterator["Thunk"]:
        """It and everything in it, in order."""
        yield self
        for one in self.inside:
            yield from one.walk()


@dataclass(frozen=True, kw_only=True)
class Launches:
    """What a step (a turn of the loop that decodes, or a whole call that feeds prompts) launches on one device.

    kernels: each once, however often a loop repeats it.  by_scope: those by the named scope of the model's code.
    host_launched: kernels and copies outside of command buffers: the host launches each.
    command_buffers: graphs, launched by the host.  copies, collectives: of memory, and between devices.
    host_loops: loops (within the step) whose every turn the host decides.  loop_kernels: kernels in those loops.
    overlapped: collectives with kernels between their start and their end.
    unknown: kinds of thunks that are not known here, which nothing above counts.
    """

    kernels: int
    by_scope: Mapping[str, int]
    host_launched: int
    command_buffers: int
    copies: int
    collectives: int
    host_loops: int
    loop_kernels: int
    overlapped: int
    unknown: tuple[str, ...] = ()


def read_thunks(text: str) -> Thunk:
    """The tree of thunks of a program, under a root, from XLA's dump `thunk_sequence_after_thunk_passes.txt`.

    Raises:
        ValueError: for a line that is not understood, or no thunks.
    """
    root = Thunk(number=0, kind="program")
    open_: list[tuple[int, Thunk]] = [(-1, root)]
    for line in filter(str.strip, text.splitlines()):
        if found := _THUNK.match(line):
            indent, rest = len(found[1]), found[4]
            while open_[-1][0] >= indent:
                open_.pop()
            pair = _PAIR.search(rest)
            one = Thunk(number=int(found[2]), kind=found[3], pair=pair[1] if pair else "", launch=_launch(rest))
            open_[-1][1].inside.append(one)
            open_.append((indent, one))
        elif not _HEADER.match(line):
            raise ValueError(f"a line of thunks that is not understood: {line.strip()[:120]!r}")
    if not root.inside:
        raise ValueError(f"no thunks in a text of {len(text)} characters")
    return root


def step_of(program: Thunk) -> Thunk:
    """The loop over decoding steps of a program.

    Raises:
        ValueError: where there is not exactly one outermost loop.
    """
    loops = list(_outermost(program))
    if len(loops) != 1:
        raise ValueError(f"expected one outermost loop in a decoding program, got {len(loops)}")
    return loops[0]


def count(step: Thunk, scopes: Mapping[int, str]) -> Launches:
    """What is launched in a step. scopes: the named scope of each thunk, by its number."""
    kernels = [one for one in step.walk() if one.kind in _KERNELS]
    outside = list(_outside_of_graphs(step))
    loops = [one for one in outside if one.kind == "kWhile" and one is not step]
    in_loops = {id(one) for loop in loops for one in loop.walk() if one.kind in _KERNELS}
    known = (*_KERNELS, *_COPIES, *_STRUCTURE, "program")
    kinds = Counter(one.kind for one in step.walk())
    return Launches(
        kernels=len(kernels),
        by_scope=dict(sorted(Counter(scopes.get(one.number, "") or "other" for one in kernels).items())),
        host_launched=sum(one.kind in (*_KERNELS, *_COPIES) for one in outside),
        command_buffers=kinds["kCommandBuffer"],
        copies=sum(kinds[kind] for kind in _COPIES),
        collectives=sum(number for kind, number in kinds.items() if _COLLECTIVES.match(kind)),
        host_loops=len(loops),
        loop_kernels=len(in_loops),
        overlapped=sum(_overlapped(one.inside) for one in step.walk()),
        unknown=tuple(sorted(kind for kind in kinds if kind not in known and not _COLLECTIVES.match(kind))),
    )


def thunk_names(metadata: str) -> dict[int, str]:
    """The instruction of each thunk by its number, from XLA's dump `thunk_metadata.txt`."""
    return {int(number): name for name, number in _METADATA.findall(metadata)}


def instruction_scopes(hlo: str) -> dict[str, str]:
    """The first named scope (attention, moe, ...) of each instruction of a compiled program, by its name.

    Where XLA gives a fusion no name of its own, that of most of what is in it.
    """
    inside: defaultdict[str, Counter[str]] = defaultdict(Counter)
    own, calls, computation = dict[str, str](), dict[str, str](), ""
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif one := _INSTRUCTION.match(line):
            op_name, callee = _OP_NAME.search(line), _CALLS.search(line)
            scope = scope_of(op_name[1]).partition("/")[0] if op_name else ""
            own[one[1]] = scope
            inside[computation].update([scope] if scope else [])
            if callee and not op_name:
                calls[one[1]] = callee[1]
    for name, callee in calls.items():
        own[name] = next((scope for scope, _ in inside[callee].most_common(1)), "")
    return own


def triton_calls(hlo: str) -> set[str]:
    """Names of the instructions of a compiled program that are kernels written for Triton, by us."""
    return {one[1] for line in hlo.splitlines() if TRITON_CALL in line and (one := _INSTRUCTION.match(line))}


def _launch(text: str) -> Launch | None:
    found = _LAUNCH.match(text)
    if found is None:
        return None
    x, y, z, threads_x, threads_y, threads_z, shared = map(int, found.groups()[1:])
    return Launch(kernel=found[1], grid=(x, y, z), threads=threads_x * threads_y * threads_z, shared=shared)


def _outermost(thunk: Thunk) -> Iterator[Thunk]:
    for one in thunk.inside:
        if one.kind == "kWhile":
            yield one
        else:
            yield from _outermost(one)


def _outside_of_graphs(thunk: Thunk) -> Iterator[Thunk]:
    """A thunk and what is in it, but for what is in a command buffer."""
    yield thunk
    if thunk.kind != "kCommandBuffer":
        for one in thunk.inside:
            yield from _outside_of_graphs(one)


def _overlapped(sequence: list[Thunk]) -> int:
    """Asynchronous collectives of a sequence that have kernels between their start and their end."""
    found, working = 0, dict[str, bool]()
    for one in sequence:
        if one.kind == "kAsyncStart" and any(map(_is_collective, one.walk())):
            working[one.pair] = False
        elif one.kind == "kAsyncDone":
            found += working.pop(one.pair, False)
        elif any(inner.kind in _KERNELS for inner in one.walk()):
            working = dict.fromkeys(working, True)
    return found


def _is_collective(thunk: Thunk) -> bool:
    return bool(_COLLECTIVES.match(thunk.kind))
