"""What was compiled, as text for people. Imports no JAX."""

from collections.abc import Iterator, Mapping
from typing import Any

from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.compiling.cases import case_of
from moejax.compiling.targets import gpu_target

# (heading, width) of a kernel's columns.
_COLUMNS = (
    ("kernel", -22), ("grid", 11), ("x", 3), ("regs", 5), ("spilled", 8), ("shared", 8), ("blocks/SM", 15),
    ("tensor", 14), ("loads (bytes x)", 16), ("async", 6), ("KB in flight/SM", 16), ("instr/number", 13),
)  # fmt: skip


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The facts of one case."""
    case, seconds = case_of(facts["case"]), facts["seconds"]
    yield f"{case.title} (backend {facts['backend']}; compiled in {seconds['lower'] + seconds['compile']:.1f} s)"
    yield f"  memory       {memory_line(facts)}"
    yield f"  step         {operations_line(facts) if 'operations' in facts else launches_line(facts)}"
    yield f"  collectives  {collectives_line(facts)}"
    for name in ("substituted", "unpredicted", "missing"):
        yield from (f"  {name:<12} {one}" for one in facts["collectives"][name])
    if "kernels" in facts:
        yield from kernel_lines(facts)
    yield from (f"  slow: {one}" for one in (tpu_faults if "operations" in facts else faults)(facts))


def kernel_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """A table of moejax's own kernels, and a line on XLA's."""
    theirs = facts["xla_kernels"]
    if facts["kernels"]:
        yield "  " + _row(heading for heading, _ in _COLUMNS)
        for name, kernel in facts["kernels"].items():
            yield "  " + _row(kernel_cells(name, kernel, facts))
    spilled = f"{theirs['spilled']:,} bytes spilled" if theirs["spilled"] else "no spills"
    yield f"  XLA's own: {theirs['distinct']} different kernels, up to {theirs['registers']} registers, {spilled}"


def memory_line(facts: Mapping[str, Any]) -> str:
    """Bytes of one device."""
    memory = facts["memory"]
    fits = "fits" if memory["peak"] <= memory["device"] else "DOES NOT FIT"
    loads = "check_fits lets it load" if memory["weights"] <= memory["device"] else "check_fits REFUSES it"
    return (
        f"peak {memory['peak'] / 1e9:.2f} of {memory['device'] / 1e9:.1f} GB a device ({fits}): weights "
        f"{memory['weights'] / 1e9:.2f} ({loads}), arguments {memory['arguments'] / 1e9:.2f}, temporary "
        f"{memory['temporary'] / 1e9:.3f}"
    )


def launches_line(facts: Mapping[str, Any]) -> str:
    """Kernels of a step and who launches them."""
    found, layers = facts["launches"], facts["case"]["layers"]
    scopes = ", ".join(f"{scope} {number}" for scope, number in found["by_scope"].items())
    return (
        f"{found['kernels']} kernels ({scopes}; {per_layer(facts):.1f} a layer of {layers}), {found['copies']} copies, "
        f"{found['collectives']} collectives ({found['overlapped']} overlapped), {found['command_buffers']} command "
        f"buffers, {found['host_launched']} launched by the host, {found['host_loops']} loops driven by the host"
        + (f", UNKNOWN {', '.join(found['unknown'])}" if found["unknown"] else "")
    )


def operations_line(facts: Mapping[str, Any]) -> str:
    """What a step does on a TPU."""
    found = facts["operations"]
    return (
        f"{found['computing']} operations, {found['kernels']} of them kernels of Mosaic; {found['loops']} loops with "
        f"{found['in_loops']} operations, {found['copies']} copies ahead, {found['collectives']} collectives "
        f"({found['overlapped']} overlapped), {facts['bytes_accessed'] / 1e9:.2f} GB accessed by XLA's estimate"
    )


def collectives_line(facts: Mapping[str, Any]) -> str:
    """Whether they are those of the closed forms."""
    found = facts["collectives"]
    if not found["compared"]:
        return f"{len(found['found'])} kinds; there is no closed form of this program"
    if found["unpredicted"] or found["missing"]:
        return "NOT those of the closed forms:"
    if found["substituted"]:
        return "; ".join(found["found"]) + " as the closed forms, but for what XLA puts in the place of others:"
    return "; ".join(found["found"]) + " as the closed forms" if found["found"] else "none, as the closed forms"


def per_layer(facts: Mapping[str, Any]) -> float:
    """Kernels in the scopes of layers, by the layers that there are."""
    scopes = facts["launches"]["by_scope"]
    layers = 1 if facts["case"]["program"] == "layer" else facts["case"]["layers"]
    return sum(scopes.get(scope, 0) for scope in ("attention", "moe", "mlp")) / layers


def per_weight(kernel: Mapping[str, Any], dtype: str) -> float | None:
    """Instructions of a thread by the numbers that it loads; None where it loads none."""
    loaded = kernel["loaded"] / ITEM_SIZES[dtype]
    return kernel["instructions"] / loaded if loaded else None


def kernel_cells(name: str, kernel: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """A kernel in the columns of the table."""
    loads = ", ".join(f"{width} x {count}" for width, count in kernel["widths"].items())
    each = per_weight(kernel, facts["case"]["dtype"])
    return [
        name.split(" ")[0],
        "x".join(map(str, kernel["grid"])),
        str(kernel["launches"]),
        str(kernel["registers"]),
        str(kernel["spilled"]),
        f"{kernel['shared']:,}",
        f"{kernel['blocks']} ({kernel['limit'].split(' ')[0]})",
        f"{kernel['tensor']} {kernel['tensor_kind']}" if kernel["tensor"] else "-",
        loads or "-",
        str(kernel["asynchronous"]),
        f"{kernel['in_flight_mean'] / 1e3:.0f} to {kernel['in_flight'] / 1e3:.0f}",
        f"{each:.1f}" if each and name.startswith("one_token") else "-",
    ]


LATENCY = 0.7e-6  # seconds that a load is assumed to take: what has to be on its way is bandwidth times this
STREAMS = ("one_token", "few_tokens")  # kernels that read weights as fast as memory gives them


def faults(facts: Mapping[str, Any]) -> Iterator[str]:
    """What would be slow on a GPU, worst first."""
    found, gpu = facts["launches"], gpu_target(facts["case"]["target"])
    needed = gpu.figures.bandwidth * LATENCY / gpu.multiprocessors
    if found["host_loops"]:
        yield f"{found['host_loops']} loops whose every turn the host decides, {found['loop_kernels']} kernels in them"
    for name, kernel in facts["kernels"].items():
        if kernel["spilled"]:
            yield f"{name} spills {kernel['spilled']:,} bytes a thread"
        if name.startswith(STREAMS) and kernel["in_flight_mean"] < needed:
            yield (
                f"{name} has {kernel['in_flight_mean'] / 1e3:.0f} KB in flight on a multiprocessor on average, the "
                f"bandwidth takes {needed / 1e3:.0f}"
            )
        if name.startswith("one_token") and not kernel["fused"] and kernel["apart"]:
            yield f"{name} multiplies and adds in two instructions ({kernel['apart']} a turn), never in one"
    if facts["xla_kernels"]["spilled"]:
        yield f"XLA's own kernels spill {facts['xla_kernels']['spilled']:,} bytes a thread"
    if found["command_buffers"] > 1:
        yield f"the step is broken into {found['command_buffers']} command buffers"


def tpu_faults(facts: Mapping[str, Any]) -> Iterator[str]:
    """What would be slow on a TPU."""
    found = facts["operations"]
    if found["loops"]:
        yield f"{found['loops']} loops within the step, turn after turn, {found['in_loops']} operations in them"


def _row(cells: Any) -> str:
    return " ".join(
        f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}"
        for cell, (_, width) in zip(cells, _COLUMNS, strict=True)
    ).rstrip()
