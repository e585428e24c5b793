"""Which model a benchmark runs: a checkpoint, or random weights of a named size. Imports no JAX."""

from pathlib import Path

from moejax.families.table import RANDOM, named_configs


def resolve_source(checkpoint: str | None, random: str | None) -> str:
    """What `moejax.load` takes, from CHECKPOINT and `--random MODEL`, of which one has to be given.

    Raises:
        ValueError: for both or neither.
    """
    if (checkpoint is None) == (random is None):
        given = "both" if checkpoint else "neither"
        raise ValueError(
            f"give a CHECKPOINT or --random MODEL, got {given}; MODEL is one of "
            f"{', '.join(named_configs())}, or the path of a config.json"
        )
    return f"{RANDOM}{random}" if checkpoint is None else checkpoint


def source_name(source: str) -> str:
    """A short name for tables: the last part of a path."""
    name = source.removeprefix(RANDOM)
    return (
        f"{RANDOM if source.startswith(RANDOM) else ''}{Path(name).stem if name.endswith('.json') else Path(name).name}"
    )
