"""`moejax info`: what is in a checkpoint, and whether it fits here; or this machine."""

import json as json_format
from typing import Annotated

from moejax.cli import console, options
from moejax.cli.groups import grouped
from moejax.cli.sources import Revision, pinned

EXAMPLES = (
    "moejax info",
    "moejax info demo",
    "moejax info path/to/checkpoint --json",
    "moejax info random:mixtral-8x7b --mesh expert=4,tensor=2",
)


@grouped
def info(
    checkpoint: options.OptionalCheckpoint = None,
    *,
    mesh: options.MeshFlags,
    revision: Revision = None,
    json: Annotated[bool, options.option("--json", help="Print a JSON object and no tables.")] = False,
    debug: options.Debug = False,
) -> None:
    """Show what is in a checkpoint and whether it fits this machine, without reading its weights.

    With --mesh: whether it fits so many devices like the one that is here. Without CHECKPOINT: devices, backends,
    versions and caches of this machine, which is what a report of a fault needs.
    """
    if checkpoint is None:
        _machine(mesh, json=json)
        return
    from moejax.cli.inspection import inspect  # here, so that --help starts quickly

    found = inspect(pinned(checkpoint, revision), mesh.mesh, mesh.dispatch)
    if json:
        console.write(f"{json_format.dumps(found, ensure_ascii=False)}\n")
        return
    from moejax.cli.info_tables import tables

    console.write_rendered(*tables(found))


def _machine(mesh: options.MeshFlags, *, json: bool) -> None:
    if mesh.mesh is not None:
        raise ValueError("--mesh is for a checkpoint: moejax info CHECKPOINT --mesh ...")
    from moejax.cli.machine import describe, tables

    found = describe()
    if json:
        console.write(f"{json_format.dumps(found, ensure_ascii=False)}\n")
    else:
        console.write_rendered(*tables(found))
