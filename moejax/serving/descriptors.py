"""How many connections the system's limit of open files allows."""

import resource

from moejax.serving.settings import DEFAULT_CONNECTIONS

RESERVED = 128  # open files for all else: the weights while they load, programs, the baseline's process


def connection_limit(asked: int | None) -> int:
    """How many connections a server may have at a time, below the limit of open files, which is raised for `asked`.

    asked: None for as many as usual, or as fit.

    Raises:
        ValueError: for more than the system allows.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = (DEFAULT_CONNECTIONS if asked is None else asked) + RESERVED
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        if raised > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted - RESERVED
    if asked is None and soft > RESERVED:
        return soft - RESERVED
    raise ValueError(
        f"--max-connections {asked or DEFAULT_CONNECTIONS} needs {wanted} open files, the limit is {soft} (ulimit -n): "
        f"raise it, or use --max-connections {max(1, soft - RESERVED)}"
    )
