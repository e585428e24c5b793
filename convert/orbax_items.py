"""What makes a folder of arrays an Orbax checkpoint, written by Orbax.

Importing this module imports Orbax and JAX.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from moejax._convert.errors import CheckpointError
from moejax._convert.files import RECONVERT
from moejax._convert.zarr_array import cannot_write, reason_of


def describe_item(path: Path, dtypes: Mapping[str, np.dtype]) -> None:
    """Makes the new Orbax checkpoint `path` of arrays called so, each a single zero for now. One call at a time.

    Raises:
        CheckpointError: when the system refuses to write.
    """
    tree = {key: np.zeros((), dtype) for key, dtype in dtypes.items()}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True)
    try:
        with _quiet_orbax(), ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(tree))
    except ValueError as error:  # how tensorstore reports whatever the system refuses
        raise CheckpointError(cannot_write(path, error)) from error


def restore_item(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the Orbax checkpoint `path`, as anybody restores it who has no moejax. One call at a time.

    Raises:
        CheckpointError: when Orbax finds no checkpoint there, or a damaged one.
    """
    try:
        with _quiet_orbax(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            found = checkpointer.restore(path.absolute())
    # Whatever a damaged file brings Orbax to: no error of its own says that a checkpoint is damaged.
    except (ValueError, LookupError, TypeError, AttributeError, OSError, RuntimeError) as error:
        raise CheckpointError(f"Orbax cannot restore {path}: {reason_of(error)}; {RECONVERT}") from error
    if not isinstance(found, dict) or not all(isinstance(values, np.ndarray) for values in found.values()):
        raise CheckpointError(f"{path} is restored by Orbax as something else than arrays; {RECONVERT}")
    return found


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keeps the tracebacks off stderr that Orbax logs from its threads: the error itself comes to the caller."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
