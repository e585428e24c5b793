"""Ports for commands that tests start as processes of their own."""

import random
import socket
from pathlib import Path

_FIRST, _LAST = 10_000, 32_000
_OF_THE_SYSTEM = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port that nobody listens on, below those that the system deals out.

    The port that binding to 0 gives is one of the latter: until the command listens on it, seconds later, any client
    that connects somewhere, as those of the tests beside this one do, may be given it too.
    """
    last = int(_OF_THE_SYSTEM.read_text().split()[0]) if _OF_THE_SYSTEM.exists() else _LAST
    # From the system's own numbers: hypothesis seeds Python's, and both processes of a run would get the same.
    for port in random.SystemRandom().sample(range(_FIRST, max(last, _FIRST + 1000)), 100):
        try:
            socket.create_server(("", port)).close()
        except OSError:  # somebody listens on it
            continue
        return port
    raise RuntimeError(f"100 ports from {_FIRST} to {last} are taken")
