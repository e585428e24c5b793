"""How the processes of a run find each other. To be called before the first use of JAX's devices."""

import os
import socket
import time

from moejax.cli.devices import Processes, split_address

# For all processes to be there, counted from the import of JAX. The 5 that JAX adds, 8 for its import from a slow disk
# and 5 for all other imports leave some of the minute after which a process that stays alone must have ended.
JOIN_SECONDS = 35
HEARTBEAT_SECONDS = 10  # a process that is silent for so long is dead, and all others end; JAX's default is 100
# The first to finish waits for the others, however long: process 0 may be printing into a pager. A death ends the wait.
SHUTDOWN_SECONDS = 7 * 24 * 3600
RETRY_SECONDS = 0.2


def join(processes: Processes) -> None:
    """Makes this process one of several; returns when all of them are there.

    Where JAX's runtime cannot, it aborts the process; `moejax.cli.processes` says why.

    Raises:
        ValueError: when there is no cluster to ask, no coordinator to reach or no port to listen on.
    """
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM, which then ends nothing
    if processes.distributed:
        _join_cluster()
        return
    assert processes.coordinator_address is not None, "no --distributed, yet no address either"
    host, port = split_address(processes.coordinator_address)
    deadline = time.monotonic() + JOIN_SECONDS
    if processes.process_id == 0:
        _check_port(port)
    else:
        _await_coordinator(host, port, deadline)
    jax.distributed.initialize(
        processes.coordinator_address,
        processes.num_processes,
        processes.process_id,
        cluster_detection_method="deactivate",  # it would restrict this process to one of its GPUs
        initialization_timeout=max(1, round(deadline - time.monotonic())),
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )


def check_count(processes: Processes) -> None:
    """Checks that process 0 counts as many processes; to be called after `join`, since it starts JAX's devices.

    Raises:
        ValueError: when it does not.
    """
    import jax

    if processes.num_processes not in (None, count := jax.process_count()):
        raise ValueError(
            f"this process was given --num-processes {processes.num_processes}, process 0 was given {count}; start all "
            "of them again with the same number"
        )


def _join_cluster() -> None:
    import jax

    try:
        jax.distributed.initialize(
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        if not str(error).endswith("be defined."):  # else no cluster said what JAX needs to know
            raise
        raise ValueError(
            "--distributed found no cluster (Slurm, Open MPI, Kubernetes) in its environment; start every process with "
            "the cluster's launcher, as in srun moejax decode ..., or give --coordinator-address, --num-processes and "
            "--process-id instead"
        ) from error


def _check_port(port: int) -> None:
    """Raises ValueError when process 0 cannot listen on the port. JAX would crash, or share it with another run."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ValueError(
            f"process 0 cannot listen on port {port} of --coordinator-address ({reason}); choose another port, "
            "for every process"
        ) from error


def _await_coordinator(host: str, port: int, deadline: float) -> None:
    """Returns when something listens at the address; raises ValueError when nothing does before `deadline`."""
    while True:
        try:
            socket.create_connection((host, port), timeout=max(RETRY_SECONDS, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ValueError(
                    f"no process 0 listens at --coordinator-address {host}:{port} ({error.strerror or error}), tried "
                    f"for {JOIN_SECONDS} s; start it on that host, and check the address"
                ) from error
        time.sleep(RETRY_SECONDS)
