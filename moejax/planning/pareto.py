"""What can be had at the same time: tokens/s of each user, and tokens/s of each device. Imports no JAX."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from moejax.moe.split import Split
from moejax.planning.compare import ComparisonInputs, predict_split
from moejax.planning.rows import MeshRow


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Of some splits at every batch size that fits, the rows that no other is better than in both, the fastest first.

    name: what the splits have in common, a number of devices or a kind of split.
    """

    name: str
    rows: tuple[MeshRow, ...]


def frontiers(rows: Sequence[MeshRow], plan: ComparisonInputs) -> list[Frontier]:
    """One for each number of devices in `rows`, or for each kind of split where there is but one number."""
    several = len({row.devices for row in rows}) > 1
    splits = {row.split: row for row in rows if row.fits and row.built}
    groups: dict[str, list[MeshRow]] = {}
    for split, row in splits.items():
        groups.setdefault(_count(split) if several else kind(split), []).extend(_every_batch(row, plan))
    return [Frontier(name=name, rows=tuple(frontier(some))) for name, some in groups.items() if some]


def kind(split: Split) -> str:
    """Which axes split the experts; whole copies of the model beside it are no kind of their own."""
    mesh = split.mesh
    if mesh.expert > 1:
        return "hybrid: expert and tensor" if mesh.tensor > 1 else "inter-expert: expert"
    return "intra-expert: tensor" if mesh.tensor > 1 else "copies: data alone"


def frontier(rows: Iterable[MeshRow]) -> list[MeshRow]:
    """The rows than which no other gives each user more and each device as much, the fastest for a user first."""
    best: list[MeshRow] = []
    for row in sorted(rows, key=lambda row: (-row.tokens_per_second_per_request, -row.tokens_per_second_per_device)):
        if not best or row.tokens_per_second_per_device > best[-1].tokens_per_second_per_device:
            best.append(row)
    return best


def _count(split: Split) -> str:
    return "1 device" if split.mesh.size == 1 else f"{split.mesh.size:,} devices"


def _every_batch(row: MeshRow, plan: ComparisonInputs) -> list[MeshRow]:
    """Powers of two, what batches are padded to, up to the largest that fits; none that leaves copies idle."""
    sizes = [2**power for power in range((row.largest_batch or 0).bit_length())]
    predicted = (predict_split(plan, row.split, replace(row.workload, batch_size=size)) for size in sizes)
    return [replace(one, targets=row.targets) for one in predicted if not one.idle_copies]
