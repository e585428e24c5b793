"""The command that serves a model as a row of a comparison has it split. Imports no JAX."""

from pathlib import Path

from moejax.families.table import RANDOM
from moejax.hub.names import hub_model
from moejax.planning.rows import MeshRow
from moejax.runtime.buckets import MAX_SERVED_SEQUENCES

PLACEHOLDER = "CHECKPOINT"  # for the folder of the weights, where only their sizes are known


def served_checkpoint(model: str | Path) -> str:
    """What `moejax serve` takes for a model that was compared: its checkpoint, or `PLACEHOLDER` where there is none."""
    name = str(model)
    by_id = hub_model(name) is not None and not name.endswith(".json")
    return name if name == "demo" or name.startswith(RANDOM) or by_id or Path(name).is_dir() else PLACEHOLDER


def serve_command(row: MeshRow, checkpoint: str) -> list[str] | None:
    """The words of the command; None for a split that cannot be used or is not built, for more sequences than a server
    decodes at a time, and for a bound without a cache.
    """
    work = row.workload
    if not (row.fits and row.built) or work.batch_size > MAX_SERVED_SEQUENCES or not work.context:
        return None
    return [
        *("moejax", "serve", checkpoint),
        *("--mesh", str(row.split.mesh), "--dispatch", row.split.dispatch, "--dtype", work.dtype),
        *("--max-batch", str(work.batch_size), "--max-seq-len", str(work.context)),
    ]
