"""`moejax info`: what is in a checkpoint, and whether it fits here."""

import json as json_format
from typing import Annotated

import typer

from moejax.cli import console, options

EXAMPLES = ("moejax info demo", "moejax info path/to/checkpoint --json", "moejax info random:mixtral-8x7b")


def info(
    checkpoint: options.Checkpoint,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead.")] = False,
    debug: options.Debug = False,
) -> None:
    """Show what is in a checkpoint and whether it fits this machine, without reading its weights."""
    from moejax.cli.inspection import inspect  # here, so that --help imports neither numpy nor rich

    found = inspect(checkpoint)
    if json:
        console.write(f"{json_format.dumps(found, ensure_ascii=False)}\n")
        return
    from moejax.cli.info_tables import tables

    console.write_rendered(*tables(found))
