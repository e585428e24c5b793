"""Spreads memory over the nodes of a NUMA machine, by system calls of Linux; elsewhere nothing is done."""

import ctypes
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

DEFAULT, INTERLEAVE = 0, 3  # MPOL_DEFAULT and MPOL_INTERLEAVE of <linux/mempolicy.h>
_OF_ADDRESS = 2  # MPOL_F_ADDR
_CALLS = {"x86_64": (237, 239), "aarch64": (235, 236)}  # the numbers of mbind and get_mempolicy
_MOST_NODES = 1024  # of any kernel (CONFIG_NODES_SHIFT is at most 10)


def spread(address: int, nbytes: int) -> None:
    """Interleaves pages that nothing has touched over all nodes, unless numactl or a cpuset has decided otherwise.

    Without it the pages lie on the node of the thread that writes them first: one thread that loads all weights would
    leave the bandwidth of the other nodes unused.
    """
    nodes = allowed_nodes()
    if len(nodes) > 1 and policy() == DEFAULT:
        interleave(address, nbytes, nodes)


def interleave(address: int, nbytes: int, nodes: Sequence[int]) -> bool:
    """Binds whole pages to `nodes` in turn; False where the system does not: a container may forbid the call."""
    mask = (ctypes.c_ulong * (_MOST_NODES // 64))()
    for node in nodes:
        mask[node // 64] |= 1 << node % 64
    return _call(0, address, nbytes, INTERLEAVE, ctypes.addressof(mask), _MOST_NODES + 1, 0)  # it reads one bit less


def policy(address: int | None = None) -> int | None:
    """The memory policy of this thread or of an address; None where it is not known."""
    mode = ctypes.c_int()
    flags = 0 if address is None else _OF_ADDRESS
    return mode.value if _call(1, ctypes.addressof(mode), 0, 0, address or 0, flags) else None


def allowed_nodes() -> list[int]:
    """The nodes that have memory which this process may use."""
    try:
        there = Path("/sys/devices/system/node/has_memory").read_text()
        status = Path("/proc/self/status").read_text()
    except OSError:
        return []
    allowed = next((line for line in status.splitlines() if line.startswith("Mems_allowed_list:")), ":")
    return sorted(_numbers(there) & _numbers(allowed.partition(":")[2]))


def _numbers(text: str) -> set[int]:
    """Of a list as the kernel writes it: "0-2,5" is 0, 1, 2 and 5."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return {number for low, _, high in ranges for number in range(int(low), int(high or low) + 1)}


def _call(which: int, *args: int) -> bool:
    """Whether a system call of _CALLS is known here and succeeds."""
    numbers = _CALLS.get(platform.machine()) if sys.platform == "linux" else None
    if numbers is None:
        return False
    return ctypes.CDLL(None).syscall(*map(ctypes.c_long, (numbers[which], *args))) == 0
