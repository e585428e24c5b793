"""Where a command runs: on which devices, as which of several processes. Checked before JAX starts."""

import os
from dataclasses import dataclass
from typing import Annotated

from moejax.cli.options import DEVICES, option, whole


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The devices of a command. By default those that JAX finds.

    Raises:
        ValueError: for values out of range, and where JAX was told to use others.
    """

    simulate_devices: Annotated[
        int | None,
        whole(
            "--simulate-devices", panel=DEVICES, help="Act as N CPU devices in each process, to try a mesh anywhere."
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.simulate_devices is None:
            return
        if self.simulate_devices < 1:
            raise ValueError(f"--simulate-devices must be at least 1, got {self.simulate_devices}")
        if (platforms := os.environ.get("JAX_PLATFORMS", "cpu")) != "cpu":
            raise ValueError(
                f"--simulate-devices simulates CPU devices, but JAX_PLATFORMS={platforms!r}; set it to cpu"
            )


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Which of several processes this is. By default it is alone.

    coordinator_address, num_processes, process_id: all three, or none of them.
    distributed: the cluster's own environment variables say all three.

    Raises:
        ValueError: for values out of range, and for flags that do not go together.
    """

    coordinator_address: Annotated[
        str | None,
        option(
            "--coordinator-address",
            panel=DEVICES,
            metavar="HOST:PORT",
            help="Where process 0 waits for the others: its host, and any free port there.",
        ),
    ] = None
    num_processes: Annotated[
        int | None, whole("--num-processes", panel=DEVICES, help="How many processes run this command together.")
    ] = None
    process_id: Annotated[
        int | None, whole("--process-id", panel=DEVICES, metavar="I", help="Which of them this is, from 0.")
    ] = None
    distributed: Annotated[
        bool,
        option("--distributed", panel=DEVICES, help="One of several processes, as Slurm, Open MPI or Kubernetes says."),
    ] = False

    def __post_init__(self) -> None:
        flags = {
            "--coordinator-address": self.coordinator_address,
            "--num-processes": self.num_processes,
            "--process-id": self.process_id,
        }
        given = [name for name, value in flags.items() if value is not None]
        missing = [name for name, value in flags.items() if value is None]
        if self.distributed and given:
            raise ValueError(f"--distributed asks the cluster; it cannot be used with {given[0]}")
        if given and missing:
            raise ValueError(f"{given[0]} also needs {' and '.join(missing)}: it is for one of several processes")
        if self.num_processes is None or self.process_id is None or self.coordinator_address is None:
            return
        if self.num_processes < 1:
            raise ValueError(f"--num-processes must be at least 1, got {self.num_processes}")
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"--process-id must be from 0 to {self.num_processes - 1} with --num-processes {self.num_processes}, "
                f"got {self.process_id}"
            )
        split_address(self.coordinator_address)

    @property
    def several(self) -> bool:
        """Whether this is one of several processes."""
        return self.distributed or self.num_processes is not None


def split_address(address: str) -> tuple[str, int]:
    """The host and the port of HOST:PORT; an IPv6 address stands in brackets.

    Raises:
        ValueError: for anything else.
    """
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if (
        not host.strip("[]")
        or (":" in host and not bracketed)
        or not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536)
    ):
        raise ValueError(
            f"--coordinator-address must be HOST:PORT, as in 10.0.0.1:9876 or [fe80::1]:9876, got {address!r}"
        )
    return host.strip("[]"), int(port)
