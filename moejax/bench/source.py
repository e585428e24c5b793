"""Which model a benchmark runs: a checkpoint, or random weights of a named size. Imports no JAX."""

from pathlib import Path

from moejax.config import NAMED_CONFIGS

MODELS = Path(__file__).parent / "models"
RANDOM = "random:"


def small_models() -> tuple[str, ...]:
    """Names of the models that exist for benchmarks on a CPU: their parameters in millions."""
    return tuple(sorted(path.stem for path in MODELS.glob("*.json")))


def resolve_source(checkpoint: str | None, random: str | None) -> str:
    """What `moejax.load` takes, from CHECKPOINT and `--random MODEL`, of which one has to be given.

    Raises:
        ValueError: for both or neither.
    """
    if (checkpoint is None) == (random is None):
        given = "both" if checkpoint else "neither"
        raise ValueError(
            f"give a CHECKPOINT or --random MODEL, got {given}; MODEL is one of "
            f"{', '.join((*small_models(), *NAMED_CONFIGS))}, or the path of a config.json"
        )
    if checkpoint is not None:
        return checkpoint
    return f"{RANDOM}{MODELS / f'{random}.json'}" if random in small_models() else f"{RANDOM}{random}"


def source_name(source: str) -> str:
    """A short name for tables: the last part of a path."""
    name = source.removeprefix(RANDOM)
    return (
        f"{RANDOM if source.startswith(RANDOM) else ''}{Path(name).stem if name.endswith('.json') else Path(name).name}"
    )
