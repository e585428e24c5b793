"""What share of a datasheet's figures a roofline takes as reached: a number, two, or what a system published.

Imports no JAX.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from moejax.planning.hardware import Efficiency, Hardware
from moejax.planning.software import SoftwareName, Times, basis

PresetName = Literal["gpt-fast-a100", "vllm-a100", "vllm-h100"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a published system reached: the shares with which a roofline predicts what was measured.

    within: by how much such a prediction of what was published is off at most.
    what: that was measured.  source: where it was published.
    """

    efficiency: Efficiency
    within: float
    what: str
    source: str


PRESETS: Mapping[PresetName, Preset] = {
    "gpt-fast-a100": Preset(
        efficiency=Efficiency(bandwidth=0.62, matrix_rate=1.0),
        within=0.01,
        what="Mixtral 8x7B, one sequence, tensor=2 on A100-80GB at 330 W; decoding alone, no prefill was published",
        source="https://github.com/pytorch-labs/gpt-fast/tree/main/mixtral-moe",
    ),
    "vllm-a100": Preset(
        efficiency=Efficiency(bandwidth=0.61, matrix_rate=0.55),
        within=0.22,
        what="Mixtral 8x7B, 1 to 64 sequences of 1,000 tokens in and 50 out, tensor=2 on A100-80GB, March 2024",
        source="https://github.com/vllm-project/vllm/pull/3240",
    ),
    "vllm-h100": Preset(
        efficiency=Efficiency(bandwidth=0.19, matrix_rate=0.24),
        within=0.35,
        what="Mixtral 8x7B, 1 to 64 sequences of 1,000 tokens in and 50 out, tensor=8 on H100, January 2024",
        source="https://github.com/vllm-project/vllm/pull/2542",
    ),
}
_NUMBER = r"([0-9]{0,3}\.?[0-9]{1,9})(%?)"


def parse_efficiency(value: object) -> Efficiency:
    """The shares that 0.6, "0.6", "60%", "0.8,0.5" (of bandwidth, of the matrix rate) or the name of a preset stands
    for, in any case.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, str) and value.lower() in PRESETS:
        return PRESETS[value.lower()].efficiency  # type: ignore[index]  # one of its names
    found = [re.fullmatch(_NUMBER, word) for word in str(value).split(",")] if not isinstance(value, bool) else []
    shares = [float(one[1]) / (100 if one[2] else 1) for one in found if one]
    if len(shares) != len(found) or len(shares) not in (1, 2):
        near = get_close_matches(str(value).lower(), PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"efficiency must be a share as in 0.6 or 60%, one of bandwidth and one of the matrix rate as in 0.8,0.5, "
            f"or one of {', '.join(PRESETS)}, got {value!r:.80}{hint}"
        )
    try:
        return Efficiency(bandwidth=shares[0], matrix_rate=shares[-1])
    except ValueError as error:
        percent = f"; {max(shares):g} of a hundred is {max(shares):g}%" if 1 < max(shares) <= 100 else ""
        raise ValueError(f"efficiency={value}: {error}{percent}") from error


def with_efficiency(hardware: Hardware, value: float | str | None) -> Hardware:
    """The same hardware, reaching these shares; None leaves what its file says.

    Raises:
        ValueError: as `parse_efficiency`.
    """
    return hardware if value is None else replace(hardware, efficiency=parse_efficiency(value))


def check_efficiency(
    hardware: Hardware, software: SoftwareName, dtype: str, times: Times, value: float | str | None
) -> None:
    """Raises ValueError where shares of a datasheet were asked for and seconds stand on something that was measured."""
    if value is None or (found := basis(hardware, software, dtype, times)) == "roofline":
        return
    stands = {
        "fitted": f"those of software={software} on {hardware.name} are fitted to measured kernels",
        "measured": "times=measured are those of tables",
        "calibrated": f"those of {hardware.name} were measured by moejax mesh calibrate",
    }[found]
    remedy = "leave it out" if found == "calibrated" else "use software=ideal, or leave it out"
    raise ValueError(f"efficiency={value} is for times of a roofline, and {stands}; {remedy}")
