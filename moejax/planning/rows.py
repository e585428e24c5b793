"""The typed rows of a comparison: one per split and batch. Imports no JAX."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moejax._sharding.collectives import Collective
from moejax.moe.split import ONE_FOR_ALL, Split
from moejax.planning.checks import CompiledCheck, Measured
from moejax.planning.compiled_counts import CompiledCounts
from moejax.planning.targets import Targets
from moejax.planning.units import BYTES, SECONDS, amount, number
from moejax.planning.workload import Workload

NOT_BUILT = "not built"  # the dispatch of a row that only shows what could be


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes on each device.

    weights: parameters.  kv: the cache of the whole batch.  activations: an estimate of what a call needs besides.
    """

    weights: int
    kv: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.activations


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A predicted decode step, or a predicted prefill, on the critical path: the busiest device of each layer.

    Counted per device: weight_bytes read, of which expert_bytes of experts; kv_bytes read; flops; collectives.
    experts_read: distinct experts whose weights the busiest device reads, expected, per layer and call; a device along
    tensor reads 1/t of each, so it counts as 1/t.
    imbalance: rows (token and expert) of the busiest device over the mean of all, expected.

    seconds: in all, from weights_seconds and kv_seconds for reading; compute_seconds for all matrix products, of which
    exposed_compute_seconds is what outlasts the reads it can overlap with; latency_seconds and bandwidth_seconds of the
    collectives; overhead_seconds as the hardware file has it.
    measured: parts (experts, cache) whose seconds are those of measured tables, beyond: up to how many times
    outside of what was measured, or of the layers that terms were fitted to, something lies; 1 where nothing does.
    calls: of the compiled program; the counts and seconds above are of all of them.
    """

    weight_bytes: float
    expert_bytes: float
    kv_bytes: float
    flops: float
    collectives: list[Collective] = field(repr=False)  # some hundred
    experts_read: float
    imbalance: float
    calls: int
    weights_seconds: float
    kv_seconds: float
    compute_seconds: float
    exposed_compute_seconds: float
    latency_seconds: float
    bandwidth_seconds: float
    overhead_seconds: float
    measured: tuple[str, ...] = ()
    beyond: float = 1.0

    @property
    def communication_seconds(self) -> float:
        return self.latency_seconds + self.bandwidth_seconds

    @property
    def seconds(self) -> float:
        """In all: the parts that `exposed_compute_seconds` makes add up."""
        return (
            self.weights_seconds
            + self.kv_seconds
            + self.exposed_compute_seconds
            + self.communication_seconds
            + self.overhead_seconds
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class MeshRow:
    """One split of one workload: what it takes, and what is predicted.

    batch_size: of the workload.
    why_not: why it cannot be used, None where it can.  built: False for a row that only shows what could be.
    footprint, decode, prefill: None where the model cannot be split so; what would be where it is, but does not fit.
    over_bytes: that a device lacks.  usable_bytes: that it has for the model.
    load_imbalance: rows of the busiest device over the mean in the long run; 1 under uniform routing.
    largest_batch: the most sequences that fit, a power of two and at most what a server decodes at a time; 0 where not
    even one does, None where the model cannot be split so.
    peak_tokens_per_second: of decoding the largest batch that fits.
    best_for: the objectives for which no split of this batch size is better, each with the reason in a sentence whose
    subject is this split.
    targets: how fast it was asked to be.
    compiled, measured, compiled_for: filled when they were asked for; memory and launches are those of the last one.
    """

    split: Split
    workload: Workload
    why_not: str | None
    built: bool = True
    footprint: Footprint | None = None
    decode: Phase | None = None
    prefill: Phase | None = None
    over_bytes: int = 0
    usable_bytes: int = 0
    load_imbalance: float = 1.0
    largest_batch: int | None = None
    peak_tokens_per_second: float = 0.0
    best_for: Mapping[str, str] = field(default_factory=dict)
    targets: Targets = Targets()
    compiled: CompiledCheck | None = None
    measured: Measured | None = None
    compiled_for: CompiledCounts | None = None

    def __repr__(self) -> str:
        """A line: all the numbers of a row are a page."""
        said = [f"{self.label}, batch {self.batch_size}"]
        if self.why_not is not None:
            said.append(self.why_not)
        if self.fits:
            assert self.decode and self.prefill and self.footprint
            said.append(
                f"{amount(self.decode.seconds, SECONDS)} a step, {number(self.tokens_per_second_total)} tokens/s, "
                f"{amount(self.prefill.seconds, SECONDS)} to the first, "
                f"{amount(self.footprint.total, BYTES)} per device"
            )
            if missed := [f"{name.upper()} by {amount(seconds, SECONDS)}" for name, seconds in self.misses.items()]:
                said.append(f"misses {' and '.join(missed)}")
        if self.best_for:
            said.append(f"best for {', '.join(self.best_for)}")
        return f"<MeshRow {'; '.join(said)}>"

    @property
    def batch_size(self) -> int:
        return self.workload.batch_size

    @property
    def devices(self) -> int:
        """Along all axes."""
        return self.split.mesh.size

    @property
    def idle_copies(self) -> int:
        """Copies of the model, along data, that have no sequence of the batch."""
        return max(0, self.split.mesh.data - self.batch_size)

    @property
    def fits(self) -> bool:
        """Whether the model can be split so and every device holds its part."""
        return self.decode is not None and not self.over_bytes

    @property
    def label(self) -> str:
        """The axes that split something, and the dispatch where experts are apart: "expert=4,tensor=2 gather"."""
        mesh = ",".join(f"{axis}={size}" for axis, size in self.split.mesh.shape.items() if size > 1) or "one device"
        named = self.names_dispatch and self.footprint is not None
        return f"{mesh} {self.dispatch}" if named else mesh

    @property
    def dispatch(self) -> str:
        """The name of its dispatch, or that it has none yet."""
        return self.split.dispatch if self.built else NOT_BUILT

    @property
    def names_dispatch(self) -> bool:
        """Whether its dispatch tells it from other splits: experts are apart, or it differs where they are not."""
        return self.split.mesh.expert > 1 or self.split.dispatch != ONE_FOR_ALL

    @property
    def tokens_per_second_per_request(self) -> float:
        """0 where it cannot be used."""
        return 1.0 / self.decode.seconds if self.decode is not None and self.fits else 0.0

    @property
    def tokens_per_second_total(self) -> float:
        return self.batch_size * self.tokens_per_second_per_request

    @property
    def tokens_per_second_per_device(self) -> float:
        return self.tokens_per_second_total / self.devices

    @property
    def ttft_seconds(self) -> float:
        """Until every request of the batch has its first token, all arriving at once; infinite where it cannot."""
        return self.prefill.seconds if self.prefill is not None and self.fits else float("inf")

    @property
    def tpot_seconds(self) -> float:
        """Of each token after the first: a decode step at the workload's context; infinite where it cannot be used."""
        return self.decode.seconds if self.decode is not None and self.fits else float("inf")

    @property
    def misses(self) -> dict[str, float]:
        """Seconds over each of the targets ("ttft", "tpot") that is missed; infinite where the split cannot be used."""
        return self.targets.misses(self._took)

    @property
    def meets_targets(self) -> bool | None:
        """Whether it exists, can be used and misses no target; None where there is none."""
        return self.built and self.fits and not self.misses if self.targets else None

    @property
    def times_target(self) -> float:
        """What it takes in multiples of the target that it misses most; at most 1 where it meets all."""
        return self.targets.worst(self._took)

    @property
    def _took(self) -> dict[str, float]:
        return {"ttft": self.ttft_seconds, "tpot": self.tpot_seconds}
