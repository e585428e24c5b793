"""What checking a prediction found: against the compiled program, against the clock. Imports no JAX."""

from dataclasses import dataclass

from moejax._sharding.collectives import Collective


@dataclass(frozen=True, kw_only=True)
class ComparedCall:
    """Every collective of one call of a program, as compiled and as predicted."""

    collectives: list[Collective]
    predicted: list[Collective]


@dataclass(frozen=True, kw_only=True)
class CompiledCheck:
    """What XLA compiled for one split, beside what was predicted. Bytes are per device, of a float32 build.

    decode, prefill: of one call of each: the step, and the feeding of the first group of prompts.
    weight_bytes, kv_bytes: of the step's arguments.  temp_bytes: what the larger call needs besides.
    differences: what is not as predicted, in words.
    """

    decode: ComparedCall
    prefill: ComparedCall
    weight_bytes: int
    kv_bytes: int
    predicted_weight_bytes: int
    predicted_kv_bytes: int
    temp_bytes: int
    differences: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether every collective and every argument byte is as predicted."""
        return not self.differences


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds on the devices that are really there, and those predicted for as many layers.

    layers: of the model that was timed.  reduced: whether the whole one has more, too many for these devices.
    """

    decode_seconds: float
    prefill_seconds: float
    predicted_decode_seconds: float
    predicted_prefill_seconds: float
    layers: int
    reduced: bool

    @property
    def decode_error(self) -> float:
        """Predicted over measured, less 1: -0.2 is 20% too fast."""
        return self.predicted_decode_seconds / self.decode_seconds - 1

    @property
    def prefill_error(self) -> float:
        return self.predicted_prefill_seconds / self.prefill_seconds - 1
