"""`moejax info`: what is in a checkpoint, and whether it fits here."""

import json as json_format
from typing import Annotated

from moejax.cli import console, options
from moejax.cli.groups import grouped
from moejax.cli.sources import Revision, pinned

EXAMPLES = (
    "moejax info demo",
    "moejax info path/to/checkpoint --json",
    "moejax info random:mixtral-8x7b --mesh expert=4,tensor=2",
)


@grouped
def info(
    checkpoint: options.Checkpoint,
    mesh: options.MeshFlags,
    revision: Revision = None,
    json: Annotated[bool, options.option("--json", help="Print a JSON object and no tables.")] = False,
    debug: options.Debug = False,
) -> None:
    """Show what is in a checkpoint and whether it fits this machine, without reading its weights.

    With --mesh: whether it fits so many devices like the one that is here.
    """
    from moejax.cli.inspection import inspect  # here, so that --help starts quickly

    found = inspect(pinned(checkpoint, revision), mesh.mesh, mesh.dispatch)
    if json:
        console.write(f"{json_format.dumps(found, ensure_ascii=False)}\n")
        return
    from moejax.cli.info_tables import tables

    console.write_rendered(*tables(found))
