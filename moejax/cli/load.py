"""Loads the model of a command once JAX has started, on the mesh that was asked for, and says what was chosen."""

import jax

import moejax
from moejax._sharding import MeshConfig
from moejax.cli import console
from moejax.cli.facts import SourceFacts
from moejax.cli.options import MeshFlags, ModelFlags
from moejax.moe.split import Split
from moejax.runtime.buckets import MAX_SEQUENCES


def load_model(
    facts: SourceFacts, mesh: MeshFlags, flags: ModelFlags, *, batch_size: int, timed: bool = False, quiet: bool
) -> moejax.Model:
    """Loads what `facts` are of; a mesh "auto" is the best for `batch_size` sequences on the devices here.

    timed: whether the command times the model, which simulated devices are no good for.

    Raises:
        ValueError: for a mesh that cannot be, or cannot be timed, before anything is loaded.
    """
    split = mesh.split(facts, flags.dtype, batch_size=min(MAX_SEQUENCES, batch_size))
    if timed:
        _check_real(split.mesh)
    if not quiet:
        if split.remark and split.mesh.size <= jax.device_count():
            console.remark(split.remark)
        if mesh.mesh is not None and split.mesh.size < jax.device_count():
            console.remark(
                f"mesh {split.mesh} uses {split.mesh.size} of the {jax.device_count()} devices that there are"
            )
    with console.progress(f"loading {facts.name}", quiet=quiet):
        return load_split(facts, split, flags, max_seq_len=facts.max_seq_len)


def load_split(facts: SourceFacts, split: Split, flags: ModelFlags, *, max_seq_len: int) -> moejax.Model:
    """Loads what `facts` are of, split as `split` says."""
    return moejax.load(
        facts.source,
        mesh=split,
        dtype=flags.dtype,
        max_seq_len=max_seq_len,
        expert_backend=flags.expert_backend,
        seed=flags.seed,
        micro_batches=flags.micro_batches,
    )


def _check_real(mesh: MeshConfig) -> None:
    """Raises ValueError for simulated devices: they share this machine's cores, so their times say nothing."""
    if mesh.size > 1 and jax.devices()[0].platform == "cpu":
        raise ValueError(
            "CPU devices of a mesh are simulated and not timed; moejax bench compare --mesh counts what they exchange"
        )
