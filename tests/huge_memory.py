"""Whether the system had a huge page for everyone who asked: memory in pieces is no fault of the code that asks."""

from pathlib import Path

_COUNTERS = Path("/proc/vmstat")
_REFUSALS = ("thp_fault_fallback", "thp_collapse_alloc_failed")


class Refusals:
    """Looks at what the kernel, for all processes, could not give since this was made."""

    def __init__(self) -> None:
        self._before = _refusals()

    def happened(self) -> bool:
        return _refusals() != self._before


def _refusals() -> list[str]:
    if not _COUNTERS.exists():
        return []
    return [line for line in _COUNTERS.read_text().splitlines() if line.split()[0] in _REFUSALS]
