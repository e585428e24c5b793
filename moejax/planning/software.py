"""Whose kernels and collectives a prediction is of, and what its seconds stand on. Imports no JAX."""

from difflib import get_close_matches
from typing import Literal, get_args

from moejax.planning.hardware import Efficiency, Hardware
from moejax.planning.hardware_file import load_hardware, shipped_hardware

SoftwareName = Literal["moejax", "vllm", "trtllm", "sglang", "ideal"]
SOFTWARE: tuple[SoftwareName, ...] = get_args(SoftwareName)
Times = Literal["fitted", "measured"]
TIMES: tuple[Times, ...] = get_args(Times)
Basis = Literal["measured", "fitted", "calibrated", "roofline"]


def software_name(asked: object) -> SoftwareName:
    """The name as the table has it, whatever the case in which it was asked for.

    Raises:
        ValueError: for an unknown name.
    """
    for name in SOFTWARE:
        if isinstance(asked, str) and asked.lower() == name:
            return name
    near = get_close_matches(str(asked).lower().replace("tensorrt-llm", "trtllm"), SOFTWARE, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown software {asked!r}: it is one of {', '.join(SOFTWARE)}{hint}")


def check_software(hardware: Hardware, asked: object, dtype: str) -> SoftwareName:
    """The name, where it can be predicted on this hardware; moejax always can, by a roofline where nothing was
    measured.

    Raises:
        ValueError: for an unknown name, and for software that was not measured on the hardware in the dtype.
    """
    name = software_name(asked)
    if name in ("moejax", "ideal") or hardware.kernels(name, dtype) is not None:
        return name
    here = [one for one in hardware.software if hardware.kernels(one, dtype) is not None]
    measured = [one for one in shipped_hardware() if load_hardware(one).kernels(name, dtype) is not None]
    where = f"{name} was on {', '.join(measured)}" if measured else f"{name} was on no device that comes with moejax"
    has = f"{', '.join(here)} was; " if here else ""
    raise ValueError(
        f"software {name} was not measured on {hardware.name} in {dtype} ({has}{where}); software=ideal is a roofline"
    )


def basis(hardware: Hardware, software: SoftwareName, dtype: str, times: Times = "fitted") -> Basis:
    """What seconds stand on: measured tables, terms fitted to them, `moejax mesh calibrate`, or a datasheet."""
    if times == "measured":
        return "measured"
    if software != "ideal" and hardware.kernels(software, dtype) is not None:
        return "fitted"
    overheads = hardware.layer_overhead or hardware.expert_overhead or hardware.token_overhead
    calibrated = dtype in hardware.speeds or overheads
    return "calibrated" if calibrated else "roofline"


def basis_said(hardware: Hardware, software: SoftwareName, dtype: str, times: Times = "fitted") -> str:
    """The same in a line."""
    if times == "measured":
        return f"times: as {hardware.software[software].title} was measured, where tables has it; the rest is fitted"
    reached = _reached(hardware)
    if software == "ideal":
        return f"times: a roofline, {reached or 'what the device could do at best'} (--software ideal)"
    if (found := basis(hardware, software, dtype)) == "calibrated":
        return f"times: as moejax mesh calibrate measured {hardware.name}"
    if found == "roofline":
        return f"times: a roofline (nothing of {software} measured in {dtype}); {reached or 'real ones are longer'}"
    title = hardware.software[software].title
    if software == "moejax":
        return "times: our launches, others' shares of the device; our kernels have not run there"
    return f"times: {title}'s kernels and collectives, fitted to measurements"


def _reached(hardware: Hardware) -> str:
    """What of a datasheet's figures a roofline goes by; nothing where it is all of them."""
    shares = hardware.efficiency
    if shares == Efficiency():
        return ""
    return f"at {shares.bandwidth:.3g} of the device's bandwidth and {shares.matrix_rate:.3g} of its matrix rate"


def check_times(asked: str) -> Times:
    """The name as the table has it. Raises ValueError where `asked` is none of them in any case."""
    for name in TIMES:
        if str(asked).lower() == name:
            return name
    raise ValueError(f"times must be {' or '.join(TIMES)}, got {asked!r}")
