"""Makes docs/accelerators.md of what `python -m scripts.compile_for` counted; compiles nothing.

    python -m scripts.accelerators_page

The counts of every target are docs/compiled_baseline.json and docs/compiled_baseline_tpu.json; the whole model on eight
H200 and on eight TPU v5e is in docs/compiled, which is what the commands of the page write, but for their seconds.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moejax._sharding import MeshConfig
from moejax.compiling.cases import Case, case_of
from moejax.compiling.targets import TARGETS
from moejax.compiling.tools import TPU_WHEELS, WHEELS
from scripts import compiled_baseline as baseline
from scripts import compiled_report as report

DOCS = Path(__file__).parent.parent / "docs"
PAGE, WHOLE = DOCS / "accelerators.md", DOCS / "compiled"
Facts = Mapping[str, Any]

INTRO = """\
# What accelerators would be given to run

XLA compiles whole programs for GPUs and TPUs that are not there, down to their machine code, and this page counts what
comes out. **No accelerator ran anything: nothing here is a time.** `python -m scripts.accelerators_page` makes it of
what

```
pip install -e '.[compile,compile-tpu]'          # in an environment of its own, 400 MB of wheels; no device, no driver
python -m scripts.compile_for --target h200      # everything about one target: its --help has the rest
make compile-check                               # what is below, compared with the committed counts
```

counted with {wheels}.

One thing a GPU would change: the tiles of XLA's own products are its defaults, since choosing them takes a device to
time them on. The kernels that moejax wrote ([kernels](kernels.md)) are what they would be.

A *step* is a turn of the decode loop, or a call that feeds a part of a prompt. *A layer* has the kernels of attention,
its norm and its cache (first number), and those of the mixture of experts, router and norm included (second). A
*command buffer* is a graph of kernels that the host launches at once; *by the host* are kernels and copies that it
launches one by one besides, and *host loops* those loops within a step whose every turn waits for the host. Collectives
are compared with the closed forms of `moejax/planning/communication.py`, one by one, dtype included.
"""

WHOLE_MODEL = """
## Mixtral 8x7B on eight H200

All 32 layers, bfloat16, 4,096 positions of cache. *Kernels in loops* are those that the host launches again with every
turn of its loops.

```
{command}
```
"""

EVERY = """
## Every GPU

Two layers of Mixtral 8x7B, as in `docs/compiled_baseline.json`, which has single MoE layers besides. An H100 has the
kernels of an H200.
"""

TPUS = """
## TPUs

The expert backend is `ragged`, which `auto` takes there: XLA has kernels for it (of Mosaic, counted below) that
multiply each row by its own expert. *Operations* run one after another, *in loops* those that a loop of the step
repeats. *Bytes* are XLA's estimate, which counts all experts, for it does not know which rows there are. XLA puts small
collectives in the place of others (`moejax/compiling/substitutions.py`), which the command names one by one; where it
did, they are *as the closed forms* `but for` so many. First all 32 layers on eight chips,

```
{command}
```

then two layers, as in `docs/compiled_baseline_tpu.json`. On a TPU7x each chip is two devices.
"""

SLOW = """
## Where it would be slow

What the command names itself, of all programs of the baseline, and after the colon in which.
"""

KERNELS = """
## The kernels

Those that read weights or the cache, in all programs of the baseline. *In flight*: kilobytes that a multiprocessor has
on their way from memory, on average where its threads wait for some, and at most; *needed*: what the bandwidth takes at
an assumed 0.7 us until a load returns. *Per number*: instructions of a thread for each number that it loads, of the
kernels of one token.
"""

TPU_COMMAND = (
    "python -m scripts.compile_for --target v5e:2x4 --mesh expert=4,tensor=2 -b 1,8 --program decode,prefill "
    "--json v5e.json"
)
COMMAND = (
    "python -m scripts.compile_for --target h200 --mesh expert=4,tensor=2 -b 1,8 --program decode,prefill,serve-step "
    "--json h200.json"
)


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE} written")


def page() -> str:
    """The page, of the JSON beside it."""
    there, tpus = (baseline.read_baseline(DOCS.parent / path, extra) for extra, path in baseline.PATHS.items())
    whole, whole_tpu = (json.loads((WHOLE / f"{name}.json").read_text(encoding="utf-8")) for name in ("h200", "v5e"))
    wheels = ", ".join(f"{name} {number}" for name, number in (WHEELS | TPU_WHEELS).items())
    parts = [
        INTRO.format(wheels=wheels),
        WHOLE_MODEL.format(command=COMMAND),
        *table(PROGRAM_COLUMNS, map(program_row, whole)),
        EVERY,
        *table(
            ("target", *PROGRAM_COLUMNS),
            ([case.target, *program_row(one)] for case, one in there.items() if case.program != "layer"),
        ),
        TPUS.format(command=TPU_COMMAND),
        *table(TPU_COLUMNS, map(tpu_row, (*whole_tpu, *tpus.values()))),
        SLOW,
        *slow_lines(there),
        KERNELS,
        *table(KERNEL_COLUMNS, kernel_rows(there)),
    ]
    return "\n".join(part.rstrip("\n") for part in parts) + "\n"


PROGRAM_COLUMNS = (
    *("program", "devices", "kernels", "a layer", "command buffers", "by the host", "host loops", "kernels in loops"),
    *("collectives", "overlapped", "as the closed forms", "temporary MB", "peak GB"),
)


def program_row(facts: Facts) -> list[str]:
    """A program in the columns of the table."""
    case, found, memory = case_of(facts["case"]), facts["launches"], facts["memory"]
    layers = 1 if case.program == "layer" else case.layers
    each = [found["by_scope"].get(scope, 0) / layers for scope in ("attention", "moe")]
    collectives = facts["collectives"]
    agree = "yes" if not (collectives["unpredicted"] or collectives["missing"]) else "NO"
    return [
        program_words(case),
        devices_words(case),
        str(found["kernels"]),
        " + ".join(f"{number:g}" if number == round(number) else f"{number:.1f}" for number in each),
        *(str(found[name]) for name in ("command_buffers", "host_launched", "host_loops", "loop_kernels")),
        str(found["collectives"]),
        str(found["overlapped"]),
        agree if collectives["compared"] else "no form",
        f"{memory['temporary'] / 1e6:,.1f}",
        f"{memory['peak'] / 1e9:.2f}",
    ]


TPU_COLUMNS = (
    *("target", "program", "devices", "layers", "operations", "kernels", "loops", "in loops", "copies ahead"),
    *("collectives", "overlapped", "as the closed forms", "GB by XLA's estimate", "temporary MB", "peak GB"),
)


def tpu_row(facts: Facts) -> list[str]:
    """A program for TPUs in the columns of their table."""
    case, found, memory, collectives = (
        case_of(facts["case"]),
        facts["operations"],
        facts["memory"],
        facts["collectives"],
    )
    agree = "NO" if collectives["unpredicted"] or collectives["missing"] else "yes"
    substituted = sum(int(line.split(" ")[0]) for line in collectives["substituted"])
    return [
        case.target,
        program_words(case),
        devices_words(case),
        "1" if case.program == "layer" else str(case.layers),
        *(str(found[name]) for name in ("computing", "kernels", "loops", "in_loops", "copies", "collectives")),
        str(found["overlapped"]),
        f"but for {substituted}" if agree == "yes" and substituted else agree,
        f"{facts['bytes_accessed'] / 1e9:.2f}",
        f"{memory['temporary'] / 1e6:,.1f}",
        f"{memory['peak'] / 1e9:.2f}",
    ]


def program_words(case: Case) -> str:
    """A program in a few words, without its target and devices."""
    besides = "" if case.dtype == "bfloat16" else f", {case.dtype}"
    besides += f", {case.micro_batches} micro-batches" if case.micro_batches > 1 else ""
    return {
        "decode": f"decode, batch {case.batch}",
        "prefill": f"prefill, {case.batch} x {case.width:,} tokens",
        "serve-step": f"server's step, {case.batch} slots",
        "serve-feed": f"server's feed, {case.width} tokens",
        "layer": f"MoE layer, {case.batch:,} tokens",
    }[case.program] + besides


def devices_words(case: Case) -> str:
    """The mesh, its axes of one device left out."""
    shape = MeshConfig.parse(case.mesh).shape
    return ",".join(f"{axis}={size}" for axis, size in shape.items() if size > 1) or "one"


def slow_lines(there: Mapping[Case, Facts]) -> Iterator[str]:
    """What would be slow, by target, and in which of its programs."""
    for name in baseline.GPUS:
        where: dict[str, list[str]] = {}
        for case, facts in there.items():
            if case.target == name:
                devices = devices_words(case)
                on = "" if devices == "one" else f" on {devices}"
                for one in report.faults(facts):
                    where.setdefault(one, []).append(program_words(case) + on)
        yield f"\n**{name}**\n"
        yield from (f"- {line}: {'; '.join(programs)}" for line, programs in where.items())
        if not where:
            yield "- nothing that it looks for"


KERNEL_COLUMNS = (
    *("target", "kernel", "grid", "registers", "spilled bytes", "shared bytes", "blocks per multiprocessor", "tensor"),
    *("loads, bytes x", "asynchronous", "in flight, KB", "needed", "per number"),
)


READERS = (*report.STREAMS, "grouped", "project", "attend")


def kernel_rows(there: Mapping[Case, Facts]) -> Iterator[list[str]]:
    """Every kernel that reads weights or the cache, of each target, but for one that is like another before it."""
    seen: set[tuple[str, ...]] = set()
    for case, facts in there.items():
        gpu = TARGETS[case.target]  # pyright: ignore[reportArgumentType]
        needed = gpu.figures.bandwidth * report.LATENCY / gpu.multiprocessors
        for name, kernel in facts["kernels"].items():
            if not name.startswith(READERS):
                continue
            cells = report.kernel_cells(name, kernel, facts)
            dtype = "" if case.dtype == "bfloat16" else f" {case.dtype}"
            row = [case.target, cells[0] + dtype, cells[1], *cells[3:11], f"{needed / 1e3:.0f}", cells[11]]
            if tuple(row) not in seen:
                seen.add(tuple(row))
                yield row


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown, after an empty line."""
    yield f"\n| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
