"""Whose kernels and collectives a prediction is of, and what its seconds stand on. Imports no JAX."""

from difflib import get_close_matches
from typing import Literal, get_args

from moejax.planning.hardware import Hardware
from moejax.planning.hardware_file import load_hardware, shipped_hardware
from moejax.planning.loads import Balanced, PowerLaw

SoftwareName = Literal["moejax", "vllm", "trtllm", "sglang", "ideal"]
SOFTWARE: tuple[SoftwareName, ...] = get_args(SoftwareName)
Times = Literal["fitted", "measured"]
TIMES: tuple[Times, ...] = get_args(Times)
Basis = Literal["fitted", "calibrated", "roofline"]


def check_software(hardware: Hardware, name: str, dtype: str) -> SoftwareName:
    """`name`, where it can be predicted on this hardware; moejax always can, by a roofline where nothing was measured.

    Raises:
        ValueError: for an unknown name, and for software that was not measured on the hardware in the dtype.
    """
    if name not in SOFTWARE:
        near = get_close_matches(name, SOFTWARE, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown software {name!r}: it is one of {', '.join(SOFTWARE)}{hint}")
    if name in ("moejax", "ideal") or hardware.kernels(name, dtype) is not None:
        return name  # type: ignore[return-value]
    measured = [one for one in shipped_hardware() if load_hardware(one).kernels(name, dtype) is not None]
    where = f"it was on {', '.join(measured)}" if measured else "it was on no device that comes with moejax"
    raise ValueError(
        f"software {name} was not measured on {hardware.name} in {dtype} ({where}); use software=ideal for a roofline"
    )


def basis(hardware: Hardware, software: SoftwareName, dtype: str) -> Basis:
    """What predicted seconds stand on: terms fitted to measured kernels, `moejax mesh calibrate`, or a datasheet."""
    if software != "ideal" and hardware.kernels(software, dtype) is not None:
        return "fitted"
    calibrated = dtype in hardware.speeds or hardware.layer_overhead or hardware.expert_overhead
    return "calibrated" if calibrated else "roofline"


def basis_said(hardware: Hardware, software: SoftwareName, dtype: str) -> str:
    """The same in a line."""
    if software == "ideal":
        return "times: a roofline, what the device could do at best (--software ideal)"
    if (found := basis(hardware, software, dtype)) == "calibrated":
        return f"times: as moejax mesh calibrate measured {hardware.name}"
    if found == "roofline":
        return f"times: a roofline (nothing of {software} measured in {dtype}); real ones are longer"
    title = hardware.software[software].title
    if software == "moejax":
        return "times: our launches, others' shares of the device; our kernels have not run there"
    return f"times: {title}'s kernels and collectives, fitted to measurements"


def check_times(name: str) -> Times:
    """Raises ValueError where `name` is none of them."""
    if name not in TIMES:
        raise ValueError(f"times must be {' or '.join(TIMES)}, got {name!r}")
    return name  # type: ignore[return-value]


def parse_skew(text: str) -> Balanced | PowerLaw | None:
    """The load that "uniform", "balanced" or "power-law:1.01" names; None is tokens that choose experts evenly.

    Raises:
        ValueError: for anything else.
    """
    kind, _, alpha = text.partition(":")
    if kind == "power-law" and alpha:
        try:
            return PowerLaw(float(alpha))
        except ValueError as error:
            raise ValueError(f"skew {text!r}: {error}") from error
    if text == "balanced":
        return Balanced()
    if text != "uniform":
        raise ValueError(f"skew must be uniform, balanced or power-law:ALPHA, as in power-law:1.01, got {text!r}")
    return None
