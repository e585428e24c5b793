"""What a buyer asks of a comparison: the fewest devices that do, and what each of them then gives. Imports no JAX."""

from collections.abc import Sequence
from dataclasses import dataclass

from moejax.planning.ranking import busy, first
from moejax.planning.rows import MeshRow
from moejax.planning.splits import check_devices
from moejax.planning.workload import whole

MOST_COUNTS = 256  # numbers of devices in one comparison


def device_counts(devices: int | Sequence[int]) -> list[int]:
    """The numbers of devices to compare, each once, in ascending order.

    Raises:
        ValueError: for none, too many of them, or one that is no number of devices.
    """
    counts = [whole(one) for one in devices] if isinstance(devices, Sequence) else [whole(devices)]
    if not counts:
        raise ValueError("devices names no number; give one, or several as in 1,2,4,8")
    for count in counts:
        check_devices(count)
    counts = sorted(set(counts))
    if len(counts) > MOST_COUNTS:
        raise ValueError(f"devices must be at most {MOST_COUNTS} numbers at a time, got {len(counts):,}; give fewer")
    return counts


@dataclass(frozen=True, kw_only=True)
class SweepAnswer:
    """What to rent for one batch size, or for whichever of several suits best; None where nothing can be used.

    A split will do that can be used and, where targets were given, meets them.

    fewest: of those that will do, the one on the fewest devices, and there with the most tokens per second.
    most: the one with the most tokens per second on each device.
    nearest: where none will do but some can be used, the one that comes nearest to its targets.
    A split that leaves copies of the model idle is none of them where there is another.
    """

    fewest: MeshRow | None
    most: MeshRow | None
    nearest: MeshRow | None


def answer(rows: Sequence[MeshRow]) -> SweepAnswer:
    """The answer for all of `rows`, whatever their batch sizes and numbers of devices."""
    usable = [row for row in rows if row.fits and row.built]
    enough = busy(row for row in usable if row.meets_targets is not False)
    return SweepAnswer(
        fewest=min(enough, key=lambda row: (row.devices, -row.tokens_per_second_per_device), default=None),
        most=max(enough, key=lambda row: (row.tokens_per_second_per_device, -row.devices), default=None),
        nearest=None if enough else min(busy(usable), key=lambda row: row.times_target, default=None),
    )


def first_of_each_count(rows: Sequence[MeshRow], objective: str) -> list[MeshRow]:
    """Of the rows of one batch size the best of each number of devices that has one, the fewest first.

    A split that leaves copies of the model idle is none: fewer devices would do the same.
    """
    used = [row for row in rows if not row.idle_copies]
    found = (first([row for row in used if row.devices == count], objective) for count in _counts(used))
    return [row for row in found if row is not None]


def counts_without(rows: Sequence[MeshRow]) -> tuple[list[int], list[int]]:
    """Numbers of devices on which nothing fits, and those on which whatever fits leaves copies of the model idle."""
    usable = [row for row in rows if row.fits and row.built]
    fitting, used = _counts(usable), _counts([row for row in usable if not row.idle_copies])
    return [count for count in _counts(rows) if count not in fitting], [one for one in fitting if one not in used]


def _counts(rows: Sequence[MeshRow]) -> list[int]:
    return sorted({row.devices for row in rows})
