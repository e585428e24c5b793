"""The devices of a command: a mesh, simulated ones, those of several processes. Checked before JAX starts."""

import os
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from moejax.cli.options import whole_number
from moejax.moe.split import DISPATCHES

PANEL = "Devices and processes"


def _whole(*names: str, metavar: str = "N", help: str) -> Any:
    return typer.Option(*names, rich_help_panel=PANEL, parser=whole_number, metavar=metavar, help=help)


Mesh = Annotated[
    str | None,
    typer.Option(
        "--mesh",
        rich_help_panel=PANEL,
        metavar="MESH",
        help="How many devices along each axis, as in data=1,expert=4,tensor=2, or auto, what `moejax mesh compare` "
        "ranks first. One device by default.",
        show_default=False,
    ),
]
Dispatch = Annotated[
    str,
    typer.Option(
        "--dispatch",
        rich_help_panel=PANEL,
        metavar="NAME",
        help=f"How tokens reach their experts on a mesh: auto, {', '.join(DISPATCHES)}.",
    ),
]
SimulateDevices = Annotated[
    int | None, _whole("--simulate-devices", help="Act as N CPU devices in each process, to try a mesh anywhere.")
]
CoordinatorAddress = Annotated[
    str | None,
    typer.Option(
        "--coordinator-address",
        rich_help_panel=PANEL,
        metavar="HOST:PORT",
        help="Where process 0 waits for the others: its host, and any free port there.",
    ),
]
NumProcesses = Annotated[int | None, _whole("--num-processes", help="How many processes run this command together.")]
ProcessId = Annotated[int | None, _whole("--process-id", metavar="I", help="Which of them this is, from 0.")]
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed", rich_help_panel=PANEL, help="One of several processes, as Slurm, Open MPI or Kubernetes says."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Where a command runs. By default: on what JAX finds, in one process.

    simulate_devices: CPU devices that each process simulates; None takes those that JAX finds.
    coordinator_address, num_processes, process_id: all three, or none of them.
    distributed: the cluster's own environment variables say all three.

    Raises:
        ValueError: for values out of range, and for flags that do not go together.
    """

    simulate_devices: int | None = None
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    distributed: bool = False

    def __post_init__(self) -> None:
        self._check_simulation()
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

    def _check_simulation(self) -> None:
        if self.simulate_devices is None:
            return
        if self.simulate_devices < 1:
            raise ValueError(f"--simulate-devices must be at least 1, got {self.simulate_devices}")
        if (platforms := os.environ.get("JAX_PLATFORMS", "cpu")) != "cpu":
            raise ValueError(
                f"--simulate-devices simulates CPU devices, but JAX_PLATFORMS={platforms!r}; set it to cpu"
            )


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
