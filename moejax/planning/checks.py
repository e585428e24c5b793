"""What checking a prediction found: against the compiled program, against the clock. Imports no JAX."""

from dataclasses import dataclass

from sharding.collectives import Collective


@dataclass(frozen=True, kw_only=True)
class CompiledCheck:
    """What XLA compiled for one split, beside what was predicted. Bytes are per device, of a float32 build.

    equal: whether every collective and every argument byte is as predicted.
    """

    decode_collectives: list[Collective]
    prefill_collectives: list[Collective]
    weight_bytes: int
    kv_bytes: int
    temp_bytes: int
    differences: tuple[str, ...]

    @property
    def equal(self) -> bool:
        return not self.differences


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds on the devices that are really there, of `layers` layers; reduced: whether the model has more."""

    decode_seconds: float
    prefill_seconds: float
    layers: int
    reduced: bool
