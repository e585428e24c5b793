"""Where one split overtakes another: along the batch size, and along the speed of the links. Imports no JAX."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from moejax._sharding import MeshConfig
from moejax._sharding.collectives import Collective, wire_elements
from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.moe.split import Split
from moejax.planning.compare import ComparisonInputs, predict_split
from moejax.planning.hardware import Hardware
from moejax.planning.rows import MeshRow, Phase
from moejax.planning.workload import Workload


@dataclass(frozen=True, kw_only=True)
class ThroughputCurve:
    """Tokens per second of one split at each of the batch sizes that fit: powers of two, what batches are padded to."""

    label: str
    split: Split
    batches: tuple[int, ...]
    tokens_per_second: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """From the batch size `below` on to `above`, `later` overtakes `earlier`; where lines between them would meet."""

    earlier: str
    later: str
    below: int
    above: int
    batch: float
    tokens_per_second: float


def curve(plan: ComparisonInputs, split: Split, workload: Workload, largest: int) -> ThroughputCurve:
    """Tokens per second of a split from batch 1 to `largest`, as far as it fits."""
    batches, speeds, size, label = [], [], 1, ""
    while size <= largest:
        row = predict_split(plan, split, replace(workload, batch_size=size))
        if not row.fits:
            break
        batches.append(size)
        speeds.append(row.tokens_per_second_total)
        label, size = row.label, 2 * size
    if not batches:
        raise ValueError(f"{split.mesh} does not fit at batch 1: it has no curve")
    return ThroughputCurve(label=label, split=split, batches=tuple(batches), tokens_per_second=tuple(speeds))


def batch_crossovers(curves: Sequence[ThroughputCurve]) -> list[Crossover]:
    """Every place where one of the curves overtakes another for good or for a while, from small batches to large."""
    found = []
    for one, other in combinations(curves, 2):
        ahead: tuple[int, float] | None = None  # at the last batch where they differed: which, and by how much
        for place, batch in enumerate(one.batches[: len(other.batches)]):
            gap = math.log(one.tokens_per_second[place] / other.tokens_per_second[place])
            if abs(gap) < 1e-6:
                continue
            if ahead is not None and (gap > 0) != (ahead[1] > 0):
                before, gap_before = one.batches[ahead[0]], ahead[1]
                share = gap_before / (gap_before - gap)
                earlier, later = (other, one) if gap > 0 else (one, other)
                low, high = (math.log(later.tokens_per_second[i]) for i in (ahead[0], place))
                found.append(
                    Crossover(
                        earlier=earlier.label,
                        later=later.label,
                        below=before,
                        above=batch,
                        batch=before * (batch / before) ** share,
                        tokens_per_second=math.exp(low + share * (high - low)),
                    )
                )
            ahead = place, gap
    return sorted(found, key=lambda crossover: crossover.batch)


def link_crossover(first: Phase, second: Phase, mesh: MeshConfig) -> float | None:
    """Bytes per second of a link below which `first` takes less time than `second`, which sends more.

    Of links of one kind on `mesh`, as rings: of what was measured, what size does not change stays as it is. None where
    `first` sends no less; infinite where it wins on any link.
    """
    sent = [sum(_wire_bytes(one, mesh) for one in phase.collectives) for phase in (first, second)]
    besides = [phase.seconds - phase.bandwidth_seconds for phase in (first, second)]
    if sent[0] >= sent[1]:
        return None
    return math.inf if besides[0] <= besides[1] else (sent[1] - sent[0]) / (besides[0] - besides[1])


def _wire_bytes(one: Collective, mesh: MeshConfig) -> float:
    return float(wire_elements(one, mesh.shape)) * ITEM_SIZES[one.dtype]


@dataclass(frozen=True, kw_only=True)
class GatherCrossover:
    """On one mesh without tensor: the link speed below which `gather` takes less time than `replicated`.

    phase: "decode" or "prefill".  bandwidth: bytes per second each way; None where gather sends no less, so that it
    never wins by slower links; infinite where it wins on any link.
    """

    mesh: MeshConfig
    workload: Workload
    phase: str
    bandwidth: float | None


def gather_crossovers(rows: Sequence[MeshRow], hardware: Hardware) -> list[GatherCrossover]:
    """For every such mesh within one node, and every batch size of `rows`: of the decode step, and of the prefill."""
    if hardware.link is None:
        return []  # a single device
    usable = {(row.split.mesh, row.split.dispatch, row.workload): row for row in rows if row.fits and row.built}
    found = []
    for (mesh, dispatch, workload), gather in usable.items():
        replicated = usable.get((mesh, "replicated", workload))
        if dispatch != "gather" or mesh.tensor > 1 or replicated is None or mesh.size > hardware.devices_per_node:
            continue
        for phase in ("decode", "prefill"):
            first, second = getattr(gather, phase), getattr(replicated, phase)
            bandwidth = link_crossover(first, second, mesh)
            found.append(GatherCrossover(mesh=mesh, workload=workload, phase=phase, bandwidth=bandwidth))
    return found
