"""What is compiled: one program of a model for a target. Imports no JAX."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from moejax._sharding import MeshConfig
from moejax.families.config import ModelConfig
from moejax.families.table import named_config

ProgramName = Literal["decode", "prefill", "serve-step", "serve-feed", "layer"]
PROGRAM_NAMES: tuple[ProgramName, ...] = get_args(ProgramName)
LOOPS: tuple[ProgramName, ...] = ("decode", "serve-step")  # programs whose step is a turn of their loop


@dataclass(frozen=True, kw_only=True)
class Case:
    """One program.

    decode: the loop over greedy steps of `batch` sequences with `positions` of cache each.
    prefill: feeding `width` tokens of each of `batch` prompts.
    serve-step, serve-feed: those of a server with `batch` slots: sampling, and a part of one prompt of `width` tokens.
    layer: one MoE layer on `batch` tokens.

    layers: of the model, fewer than it has to be quick.  backend: "auto" is what the target would take.
    micro_batches: into how many a call's rows are divided (`moejax.load`).
    """

    target: str
    program: ProgramName
    model: str
    layers: int
    mesh: str
    dispatch: str
    backend: str
    dtype: str
    batch: int
    width: int
    positions: int
    micro_batches: int = 1

    @property
    def config(self) -> ModelConfig:
        """The model, of so many layers."""
        return dataclasses.replace(named_config(self.model), num_layers=self.layers)

    @property
    def devices(self) -> int:
        return MeshConfig.parse(self.mesh).size

    @property
    def title(self) -> str:
        """The case in a few words."""
        used = {axis: size for axis, size in MeshConfig.parse(self.mesh).shape.items() if size > 1}
        where = ",".join(f"{axis}={size}" for axis, size in used.items()) or "one device"
        what = {
            "decode": f"batch {self.batch}",
            "prefill": f"{self.batch} x {self.width} tokens",
            "serve-step": f"{self.batch} slots",
            "serve-feed": f"{self.width} tokens, {self.batch} slots",
            "layer": f"{self.batch} tokens",
        }[self.program]
        pieces = f"in {self.micro_batches} micro-batches" if self.micro_batches > 1 else ""
        ways = "".join(f" {one}" for one in (self.dispatch if used else "", self.backend, self.dtype, pieces) if one)
        return f"{self.target} {self.program} {self.model}, {self.layers} layers, {where},{ways}, {what}"


def case_of(raw: Mapping[str, Any]) -> Case:
    """A case as JSON has it.

    Raises:
        ValueError: for keys that are missing or not known.
    """
    keys = {one.name for one in dataclasses.fields(Case)}
    needed = {one.name for one in dataclasses.fields(Case) if one.default is dataclasses.MISSING}
    if not needed <= set(raw) <= keys:
        raise ValueError(f"a case has the keys {', '.join(sorted(keys))}; got {', '.join(sorted(raw))}")
    return Case(**raw)
