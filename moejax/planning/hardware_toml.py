"""Hardware files, written: what `hardware_file` reads. Imports no JAX."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from moejax.planning.hardware import Efficiency, Hardware
from moejax.planning.hardware_file import RANGES, TERMS
from moejax.planning.kernels import SoftwareKernels


def hardware_toml(hardware: Hardware) -> str:
    """The text of a file that `load_hardware` reads as `hardware`."""
    lines = [
        f"title = {_quoted(hardware.title)}",
        f"kinds = [{', '.join(map(_quoted, hardware.kinds))}]",
        f"memory_bytes = {hardware.memory_bytes}",
        f"bandwidth = {hardware.bandwidth!r}",
        f"devices_per_node = {hardware.devices_per_node}",
        f"layer_overhead = {hardware.layer_overhead!r}",
        f"expert_overhead = {hardware.expert_overhead!r}",
        f"token_overhead = {hardware.token_overhead!r}",
        "",
        "[matrix_rate]",
        *(f"{dtype} = {rate!r}" for dtype, rate in hardware.matrix_rate.items()),
    ]
    for dtype, curves in hardware.speeds.items():
        lines += ["", f"[speeds.{dtype}]"]
        lines += [
            f"{name} = {{ {', '.join(f'{rows} = {rate!r}' for rows, rate in curves[name].items())} }}"
            for name in curves
        ]
    for name, link in (("link", hardware.link), ("network", hardware.network)):
        if link is not None:
            lines += ["", f"[{name}]", f"bandwidth = {link.bandwidth!r}", f"latency = {link.latency!r}"]
            lines += [f"launch = {link.launch!r}"]
    if hardware.efficiency != Efficiency():
        reached = hardware.efficiency
        lines += ["", "[efficiency]", f"bandwidth = {reached.bandwidth!r}", f"matrix_rate = {reached.matrix_rate!r}"]
    if hardware.cache_bytes:
        lines.insert(4, f"cache_bytes = {hardware.cache_bytes}")
    for name, software in hardware.software.items():
        lines += ["", f"[software.{name}]", f"title = {_quoted(software.title)}"]
        lines += [f"{key} = {_quoted(getattr(software, key))}" for key in ("all_reduce", "collectives")]
        lines += [f"products = {software.products}"]
        for dtype, kernels in software.kernels.items():
            lines += ["", f"[software.{name}.{dtype}]", *_kernel_lines(kernels)]
    for library, kinds in hardware.collectives.items():
        lines += ["", f"[collectives.{library}]"]
        for kind, by_devices in kinds.items():
            lines += [f"{kind}.{count} = {_inline(curve)}" for count, curve in by_devices.items()]
    lines += ["", "[sources]", *(f"{_quoted(key)} = {_quoted(text)}" for key, text in hardware.sources.items())]
    return "\n".join(lines) + "\n"


def _kernel_lines(kernels: SoftwareKernels) -> list[str]:
    lines = []
    for name in (*TERMS, "experts", "untuned"):
        if (terms := getattr(kernels, name)) is not None:
            lines.append(f"{name} = {_inline({one.name: getattr(terms, one.name) for one in fields(terms)})}")
    lines += [f"{name} = {list(limits)!r}" for name in RANGES if (limits := getattr(kernels, name)) != (0.0, math.inf)]
    if kernels.tuned:
        experts = sorted({count for count, _ in kernels.tuned})
        lines.append(f"tuned = {_inline({n: sorted(w for count, w in kernels.tuned if count == n) for n in experts})}")
    return lines


def _inline(table: Mapping[Any, Any]) -> str:
    """An inline table of numbers, lists and further tables."""
    parts = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            parts.append(f"{key} = {_inline(value)}")
        else:
            parts.append(f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}")
    return f"{{ {', '.join(parts)} }}"


def _quoted(text: str) -> str:
    """A TOML basic string: what JSON writes is one, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
