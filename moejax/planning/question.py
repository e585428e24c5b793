"""What a comparison was asked with, by which one saved result is told from another. Imports no JAX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moejax.planning.hardware import Hardware
from moejax.planning.rows import MeshRow
from moejax.planning.skew import UNIFORM, skew_said
from moejax.planning.software import SoftwareName, Times, basis
from moejax.planning.splits import EVERY_DISPATCH

USABLE = 0.9  # of a device's memory; the rest is the driver's, the compiler's and fragmentation


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the rows of a comparison have in common, but for their workload, which each has.

    model: as it was named.  software: whose kernels the times are of.  times: whether measured tables were looked up.
    skew: how tokens choose experts; None where it is as `expert_load`, the path of a file, recorded.
    efficiency: as it was asked for; None leaves what the hardware has.
    objective, dispatch, usable_fraction, micro_batches: as for `compare_meshes`.
    """

    model: str
    hardware: Hardware
    software: SoftwareName = "moejax"
    times: Times = "fitted"
    skew: str | None = UNIFORM
    expert_load: str | None = None
    efficiency: str | None = None
    objective: str = "latency"
    dispatch: str = EVERY_DISPATCH
    usable_fraction: float = USABLE
    micro_batches: int = 1

    @property
    def values(self) -> dict[str, Any]:
        """Its fields as JSON has them: the hardware by its name."""
        return vars(self) | {"hardware": self.hardware.name}

    @property
    def choosing_said(self) -> str:
        """How tokens choose experts, in a line."""
        if self.skew is None:
            return "experts: as often as was recorded" + (f" in {self.expert_load}" if self.expert_load else "")
        return skew_said(self.skew) or f"experts: {self.skew}"

    def guesses(self, rows: Sequence[MeshRow]) -> list[str]:
        """The figures of the hardware that are guesses and that `rows` were predicted with, each with what its file
        says of it."""
        devices = max(row.devices for row in rows)
        fitted = basis(self.hardware, self.software, rows[0].workload.dtype, self.times) in ("fitted", "measured")
        used = {
            "devices_per_node": devices > 1,
            "link": devices > 1,
            "network": devices > self.hardware.devices_per_node,
            "collectives": fitted and devices > 1,
            f"software.{self.software}": fitted,
            "software": False,  # of the others
        }
        return [
            f"{key}: {text}"
            for key, text in self.hardware.guesses.items()
            if used.get(key, used.get(key.partition(".")[0], True))
        ]

    def title(self, row: MeshRow, devices: str) -> str:
        """Two lines over a picture of comparisons of which `row` is one: what was compared, and under which load."""
        work = row.workload
        return (
            f"{self.model} on {devices} x {self.hardware.title}, {work.dtype}, software {self.software}\n"
            f"prompts of {work.input_len:,} tokens, {work.context:,} in the cache; {self.choosing_said}"
        )
