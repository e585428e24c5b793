"""From a checkpoint, or from nothing, to a model on the devices of a mesh."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from moejax._convert import TensorPlan
from moejax._sharding import MeshConfig, Placement, chosen_devices, device_memory, mesh_config
from moejax.checkpoint import Checkpoint, open_checkpoint
from moejax.families.config import ModelConfig, sequence_limit
from moejax.families.table import RANDOM, named_config, parameters_of, weights_of
from moejax.model.cache import KVCache, empty_cache
from moejax.model.model import Transformer
from moejax.model.scoring import check_tokens
from moejax.model.structure import Structure, make_parallel, make_structure, mesh_devices
from moejax.model.tensors import read_tensor, replace_tensors, with_tensors
from moejax.moe.parallel import Parallel
from moejax.moe.split import Split, dispatch_name, resolve_split
from moejax.ops.table import prepare_backend
from moejax.planning.auto import AUTO, auto_split
from moejax.planning.footprint import weight_bytes
from moejax.reading import random_params, read_params
from moejax.runtime.accelerators import tell_unused_accelerator
from moejax.runtime.agreement import check_same
from moejax.runtime.ambient import in_settled
from moejax.runtime.keywords import known_keywords
from moejax.runtime.program_cache import keep_programs_by_default
from moejax.runtime.programs import Programs
from moejax.text.tokenizer import Tokenizer, missing_tokenizer_message
from moejax.weights.dtypes import resolve_dtype
from moejax.weights.params import ParamTree
from moejax.weights.weight import logical_tensors

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A model on its devices, ready for `decode` and `logits`. Made by `load`.

    structure: what it is, without its numbers.  tokenizer: None where there is none, for the reason in
    `no_tokenizer_reason`.
    max_seq_len: most tokens of prompt and output together.  eos_token_ids: tokens that end a text.
    ignored: tensors of the checkpoint that were not used, with the reason.
    folder: where it came from; None of random weights.
    params: its weights as programs take them, one value per weight. Their arrays depend on backend and mesh: `get`,
    `with_params` and `tensors` know weights by name, whatever these are.
    """

    structure: Structure
    tokenizer: Tokenizer | None
    no_tokenizer_reason: str | None
    max_seq_len: int
    eos_token_ids: tuple[int, ...]
    ignored: Mapping[str, str]
    params: ParamTree = field(repr=False)
    programs: Programs = field(repr=False)
    folder: Path | None = None

    def __repr__(self) -> str:
        total = parameters_of(self.config).total
        size = f"{total / 1e9:.1f} B" if total >= 1e9 else f"{total / 1e6:.2f} M"
        return (
            f"<Model {self.config.family}, {size} parameters, {self.dtype}, mesh {self.mesh} of "
            f"{self.devices[0].platform}, backend {self.expert_backend}, dispatch {self.dispatch}, "
            f"max_seq_len {self.max_seq_len}>"
        )

    @property
    def config(self) -> ModelConfig:
        """Its sizes."""
        return self.structure.config

    @property
    def dtype(self) -> str:
        """Of weights, activations and cache."""
        return self.structure.dtype

    @property
    def expert_backend(self) -> str:
        """How experts are computed."""
        return self.structure.backend

    @property
    def parallel(self) -> Parallel:
        return self.structure.parallel

    @property
    def mesh(self) -> MeshConfig:
        """Devices along each axis."""
        return self.parallel.rules.mesh

    @property
    def dispatch(self) -> str:
        """How tokens reach their experts."""
        return self.parallel.dispatch

    @property
    def devices(self) -> list[Any]:
        """All devices of the mesh, those of other processes too."""
        return mesh_devices(self.parallel.mesh)

    @property
    def expert_rows_shape(self) -> tuple[int, int, int]:
        """[d, L, P]: groups of devices that together hold all experts, MoE layers, places for experts."""
        return self.parallel.rules.parts("groups"), len(self.config.moe_layers), self.structure.experts.num_places

    def placements(self) -> list[Placement]:
        """Where every parameter lives: its split, bytes per device, and what is repeated."""
        return self.structure.placements()

    def names(self) -> dict[str, str]:
        """Every weight: our name, and Hugging Face's. Both are understood wherever a name is asked for."""
        return {path: tensor.names[0] for path, tensor in logical_tensors(weights_of(self.config)).items()}

    def get(self, name: str) -> Array:
        """The weight called `name`, as an array of the shape and dtype that checkpoints hold.

        Raises:
            ValueError: for a name that no weight has, with the nearest one.
        """
        return read_tensor(self.structure, self.params, name)

    def tensors(self) -> dict[str, Array]:
        """All weights by our names, as `get` gives them, to take gradients of. Takes the model's memory once more."""
        return {path: array.copy() for path, array in self.structure.unpack(self.params).items()}

    def with_params(self, new: Mapping[str, ArrayLike]) -> "Model":
        """This model with other numbers for the weights that `new` names; all else is shared, compiled programs too.

        new: name (ours or Hugging Face's) -> floating-point numbers of the weight's shape, to be rounded to the dtype.

        Raises:
            ValueError: for an unknown name, a weight named twice, another shape, no floating-point numbers, or finite
                ones that are infinite in the dtype.
        """
        return replace(self, params=with_tensors(self.structure, self.params, new))

    def replaced(self, params: ParamTree, new: Mapping[str, Array]) -> ParamTree:
        """`params` (as `Model.params`) with the weights that `new` names, for use inside a traced function.

        Raises:
            ValueError: as `with_params`, of what is known of arrays that are traced; and under `jax.grad`, where the
                backend or the dtype has no gradients.
        """
        return replace_tensors(self.structure, params, new)

    def merged(self, params: ParamTree) -> Transformer:
        """The module with `params` in it, for use inside a traced function.

        Raises:
            ValueError: under `jax.grad`, where the backend or the dtype has no gradients.
        """
        return self.structure.merged(params)

    def empty_cache(self, batch: int, length: int) -> KVCache:
        """A key/value cache of zeros for `batch` sequences of `length` positions, for a forward pass of your own.

        The batch has to divide over the devices that share it (`data`; of other dispatches than replicated, `expert`).

        Raises:
            ValueError: for sizes that are not whole numbers from 1.
        """
        for name, size in (("batch", batch), ("length", length)):
            if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} of a cache must be a whole number from 1, got {size!r}")
        return empty_cache(self.config, batch, length, self.dtype, self.parallel)

    def forward(
        self,
        params: ParamTree,
        tokens: Int[Array | np.ndarray, "B T"],
        lengths: Int[Array | np.ndarray, " B"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Next-token logits at every position, float32, teacher-forced: inside a traced function a part of it.

        Outside, it is compiled when a shape is new.  params: as `Model.params`.  tokens: at most `max_seq_len` each.
        lengths: how many tokens of each sequence are real; None is all.

        Raises:
            ValueError: for other params, what are no whole numbers [B, T] and [B], a sequence that is too long, and,
                where they are not traced, ids and lengths out of range.
        """
        check_tokens(tokens, lengths, self.config, self.max_seq_len)
        return self.structure.scored(params, tokens, lengths)


@known_keywords
@in_settled
def load(
    source: str | Path | Checkpoint,
    *,
    mesh: MeshConfig | str | Mapping[str, int] | Mesh | Split | None = None,
    dtype: str | np.dtype | type = "bfloat16",
    max_seq_len: int | None = None,
    expert_backend: str = "auto",
    dispatch: str = "auto",
    seed: int = 0,
    devices: Sequence[Any] | None = None,
    revision: str | None = None,
    micro_batches: int = 1,
) -> Model:
    """Loads a model onto the devices of a mesh; every device reads its own part of the weights.

    Args:
        source: "demo" (the checkpoint in this package), a Hugging Face folder (config.json and safetensors), a
            converted folder, a model on Hugging Face ("org/name", "hf://org/name" or its address), which is taken from
            the cache there or downloaded, or "random:NAME" for random weights of a named configuration or of a
            config.json. A folder that is open already (`open_checkpoint`) is not opened again.
        mesh: devices along the axes data, expert and tensor, as in "expert=4,tensor=2", a dict or a `MeshConfig`; None
            is one device. Of a `jax.sharding.Mesh` with axes of these names its devices are taken. "auto" is the split
            over all devices that `compare_meshes` ranks first; it logs which, and why. A `Split` names the dispatch as
            well.
        dtype: "bfloat16", "float16" or "float32" (also "bf16", "fp16", "f32"), or "auto" for the checkpoint's own; or
            what JAX and numpy call them (`jnp.bfloat16`).
        max_seq_len: most tokens of prompt and output together; None is the model's own limit. It is a limit, nothing
            is allocated for it.
        expert_backend: "auto", "dense", "blocked", "native", "ragged", "pallas" or "tokamax".
        dispatch: how tokens reach the devices that own their experts: "replicated", "gather", "all_to_all", or "auto",
            which logs what it picked for a mesh of several devices, and why.
        seed: of the random weights.
        devices: to take the mesh's devices from, in this order; None is all that JAX has, beginning with the one that
            `jax.default_device` names.
        revision: the branch, tag or commit of a model on Hugging Face.
        micro_batches: into how many a device's rows of a prefill, or of a large batch, are divided, so that what one
            exchanges overlaps what the next computes; 1 to 8. For a mesh of several devices.

    Raises:
        ValueError: for a source, option or checkpoint that cannot be used, a model that cannot be split over the mesh
            or does not fit its devices, a JAX that cannot start, or anything that another process of this run was not
            given as well, in one line that says what to do. Weights are only read once all else was checked.
    """
    keep_programs_by_default()
    _check_words(mesh, dispatch, seed)
    tell_unused_accelerator()
    available = chosen_devices(devices, mesh)
    backend = prepare_backend(expert_backend, jax.default_backend())
    opened = _opened(source, dtype, revision)
    limit = sequence_limit(max_seq_len, opened.config)
    split = _split(mesh, dispatch, opened, limit, available)
    structure, plan = _admitted(opened, split, backend, available, micro_batches)
    _log(logging.INFO, split.remark)
    _check_same(opened, split, backend, limit, seed, micro_batches)
    return _filled(structure, limit, opened, plan, seed)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """What is loaded, and in which dtype.  checkpoint: None where weights are random."""

    source: str
    config: ModelConfig
    dtype: str
    checkpoint: Checkpoint | None


def _check_words(mesh: Any, dispatch: str, seed: Any) -> None:
    """What is wrong before anything is opened."""
    if mesh != AUTO and not isinstance(mesh, Split):
        mesh_config(mesh)
    if dispatch != "auto":
        dispatch_name(dispatch)
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool):
        raise ValueError(f"seed must be a whole number, got {seed!r}")


def _opened(source: str | Path | Checkpoint, dtype: str | np.dtype | type, revision: str | None) -> _Opened:
    """Raises ValueError as `load`."""
    if revision is not None and (isinstance(source, Checkpoint) or str(source).startswith(RANDOM)):
        raise ValueError(f"revision={revision} is of a model on Hugging Face that is given by its name")
    if isinstance(source, str) and source.startswith(RANDOM):
        config, resolved = named_config(source.removeprefix(RANDOM)), resolve_dtype(dtype, auto="bfloat16")
        return _Opened(source=source, config=config, dtype=resolved, checkpoint=None)
    resolve_dtype(dtype, auto="float32")  # a wrong word is refused before the folder is opened
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, revision)
    resolved = resolve_dtype(dtype, auto=checkpoint.dtype)
    return _Opened(source=str(checkpoint.folder), config=checkpoint.config, dtype=resolved, checkpoint=checkpoint)


def _split(mesh: Any, dispatch: str, opened: _Opened, limit: int, available: Sequence[Any]) -> Split:
    if isinstance(mesh, Split):
        return mesh
    if mesh == AUTO:
        return auto_split(opened.config, opened.dtype, limit, dispatch, available)
    return resolve_split(opened.config, mesh_config(mesh), dispatch)


def _admitted(
    opened: _Opened, split: Split, backend: str, available: Sequence[Any], micro_batches: int
) -> tuple[Structure, TensorPlan | None]:
    """The model without its numbers, and where each is read from, once it is known that all are there and fit.

    Before anything is built of a size that config.json says.
    """
    config, checkpoint = opened.config, opened.checkpoint
    plan = None if checkpoint is None else checkpoint.plan(logical_tensors(weights_of(config)))
    parallel = make_parallel(config, split.mesh.build(available), split.dispatch, micro_batches=micro_batches)
    check_fits(config, parallel, opened.dtype)
    return make_structure(config, backend, opened.dtype, parallel), plan


def _check_same(opened: _Opened, split: Split, backend: str, limit: int, seed: int, micro_batches: int) -> None:
    """That all processes of this run were given the same."""
    check_same(
        {
            "model configuration": opened.config,
            "dtype": opened.dtype,
            "mesh": split.mesh,
            "dispatch": split.dispatch,
            "micro_batches": micro_batches,
            "expert backend": backend,
            "max_seq_len": limit,
            "seed of random weights": seed,
        }
    )


def _filled(structure: Structure, limit: int, opened: _Opened, plan: TensorPlan | None, seed: int) -> Model:
    checkpoint = opened.checkpoint
    if checkpoint is None or plan is None:
        tokenizer, no_tokenizer_reason = None, random_tokenizer_message(opened.source)
        params, ignored = random_params(structure, seed), {}
    else:
        _log(logging.WARNING, *checkpoint.remarks, checkpoint.tokenizer_remark)
        tokenizer = checkpoint.tokenizer
        no_tokenizer_reason = None if tokenizer else missing_tokenizer_message(checkpoint.folder)
        params, ignored = read_params(checkpoint, plan, structure), plan.ignored
    return Model(
        structure=structure,
        tokenizer=tokenizer,
        no_tokenizer_reason=no_tokenizer_reason,
        max_seq_len=limit,
        eos_token_ids=() if checkpoint is None else checkpoint.eos_token_ids,
        ignored=ignored,
        params=params,
        programs=Programs(structure.parallel.sharding()),
        folder=None if checkpoint is None else checkpoint.folder,
    )


def _log(level: int, *remarks: str | None) -> None:
    """Those that there are, by the first of several processes."""
    for remark in remarks if jax.process_index() == 0 else ():
        if remark:
            _logger.log(level, "%s", remark)


@in_settled
def random_model(config: ModelConfig, split: Split, dtype: str, seed: int = 0) -> Model:
    """A model of random weights, made on its devices; for one that has a name, `load("random:NAME")`."""
    keep_programs_by_default()
    backend = prepare_backend("auto", jax.default_backend())
    structure = make_structure(config, backend, dtype, make_parallel(config, split.mesh.build(), split.dispatch))
    return Model(
        structure=structure,
        tokenizer=None,
        no_tokenizer_reason="its weights are random",
        max_seq_len=config.max_position_embeddings,
        eos_token_ids=(),
        ignored={},
        params=random_params(structure, seed),
        programs=Programs(structure.parallel.sharding()),
    )


def random_tokenizer_message(source: str) -> str:
    """Why a model of random weights has no tokenizer."""
    return f"{source} has random weights and no tokenizer: give token ids instead of text"


def check_fits(config: ModelConfig, parallel: Parallel, dtype: str) -> None:
    """Raises ValueError when a device's part of the weights alone is more than its free memory."""
    needed, mesh = weight_bytes(config, parallel.rules, dtype), parallel.rules.mesh
    memory = device_memory(mesh_devices(parallel.mesh))
    if needed > memory.free_bytes:
        several = mesh.size > 1
        raise ValueError(
            f"the model needs {needed / 1e9:.1f} GB{' per device' if several else ''} for its {dtype} weights"
            f"{f' on mesh {mesh}' if several else ''}, but {memory.device} has "
            f"{memory.free_bytes / 1e9:.1f} GB free (of {memory.total_bytes / 1e9:.1f}); use "
            f"{'more devices along expert or tensor' if several else 'a device with more memory, or a mesh of several'}"
            + (", or dtype=bfloat16" if dtype == "float32" else "")
        )
