"""What makes a folder of arrays an Orbax checkpoint: its metadata, written by Orbax.

Importing this module imports Orbax and JAX.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from convert.durable import full, is_full
from convert.errors import CheckpointError


class _Described(ocp.type_handlers.NumpyHandler):
    """Orbax's handler of numpy arrays, which writes their metadata, with chunks as given, and no values.

    Orbax's own choice of chunks divides the longest axis.
    """

    def __init__(self, chunks: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._chunks = chunks

    async def _open_and_write(self, value: np.ndarray, tspec: dict[str, Any], ts_context: Any) -> None:
        key = Path(tspec["kvstore"]["path"]).name
        tspec["metadata"]["chunks"] = list(self._chunks[key])
        await ts.open(ts.Spec(tspec), create=True, context=ts_context)


def describe_item(path: Path, arrays: Mapping[str, np.ndarray], chunks: Mapping[str, tuple[int, ...]]) -> None:
    """Makes the new Orbax checkpoint `path` of these arrays, without the files of their chunks. One call at a time.

    Raises:
        CheckpointError: when the system refuses to write.
    """
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, _Described(chunks)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # there are none, but Orbax warns when nobody handles them
    )
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, type_handler_registry=registry)
    try:
        with _quiet_orbax(), ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(dict(arrays)))
    except ValueError as error:  # how tensorstore reports whatever the system refuses
        message = str(error).partition("\n")[0]
        raise CheckpointError(full(path.parent) if is_full(message) else f"cannot write {path}: {message}") from error


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
