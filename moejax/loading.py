"""From a checkpoint, or from nothing, to a model on the devices of a mesh."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from convert import TensorSource
from moejax.checkpoint import Checkpoint, open_checkpoint
from moejax.families.config import ModelConfig, named_config, sequence_limit
from moejax.model.model import Mixtral
from moejax.model.params import ParamTree, logical_tensors, merge, random_params
from moejax.model.params import split as split_module
from moejax.model.placement import param_placements, param_sharding
from moejax.moe.experts import resolve_backend
from moejax.moe.parallel import Parallel
from moejax.moe.split import Split, dispatch_name, make_rules, resolve_split
from moejax.planning.auto import AUTO, auto_split
from moejax.runtime.agreement import check_same
from moejax.runtime.programs import Programs
from moejax.text.tokenizer import Tokenizer, missing_tokenizer_message
from moejax.weights.dtypes import resolve_dtype
from sharding import MeshConfig, Placement, bytes_per_device, device_memory, mesh_config


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A model on its devices, ready for `decode` and `logits`. Made by `load`.

    config: its sizes.  tokenizer: None where there is none, for the reason in `no_tokenizer_reason`.
    max_seq_len: most tokens of prompt and output together.  dtype: of weights, activations and cache.
    expert_backend: how experts are computed.  eos_token_ids: tokens that end a text.
    mesh: devices along each axis.  dispatch: how tokens reach their experts.
    ignored: tensors of the checkpoint that were not used, with the reason.
    """

    config: ModelConfig
    tokenizer: Tokenizer | None
    no_tokenizer_reason: str | None
    max_seq_len: int
    dtype: str
    expert_backend: str
    eos_token_ids: tuple[int, ...]
    ignored: Mapping[str, str]
    params: ParamTree = field(repr=False)
    graphdef: nnx.GraphDef[Any] = field(repr=False)
    abstract: dict[str, nnx.Param[Any]] = field(repr=False)
    parallel: Parallel = field(repr=False)
    programs: Programs = field(repr=False)

    @property
    def mesh(self) -> MeshConfig:
        return self.parallel.rules.mesh

    @property
    def dispatch(self) -> str:
        return self.parallel.dispatch

    @property
    def devices(self) -> list[Any]:
        """All devices of the mesh, those of other processes too."""
        return mesh_devices(self.parallel.mesh)

    @property
    def expert_rows_shape(self) -> tuple[int, int, int]:
        """[d, L, E]: groups of devices that together hold all experts, layers, experts."""
        return self.parallel.rules.parts("groups"), self.config.num_layers, self.config.num_experts

    def placements(self) -> list[Placement]:
        """Where every parameter lives: its split, bytes per device, and what is repeated."""
        return param_placements(self.abstract, self.parallel.rules)

    def merged(self, params: ParamTree) -> Mixtral:
        """The module with `params` in it, for use inside a traced function."""
        return merge(self.graphdef, self.abstract, params)


def load(
    source: str | Path,
    *,
    mesh: MeshConfig | str | None = None,
    dtype: str = "bfloat16",
    max_seq_len: int | None = None,
    expert_backend: str = "auto",
    dispatch: str = "auto",
    seed: int = 0,
) -> Model:
    """Loads a model onto the devices of a mesh; every device reads its own part of the weights.

    Args:
        source: "demo" (the checkpoint in this package), a Hugging Face folder (config.json and safetensors), a
            converted folder, or "random:NAME" for random weights of a named configuration or of a config.json.
        mesh: devices along the axes data, expert and tensor, as in "expert=4,tensor=2" or a `MeshConfig`; None is one
            device. "auto" is the split over all visible devices that `compare_meshes` ranks first; it says on stderr
            which, and why.
        dtype: "bfloat16", "float16" or "float32" (also "bf16", "fp16", "f32"), or "auto" for the checkpoint's own.
        max_seq_len: most tokens of prompt and output together; None is the model's own limit. It is a limit, nothing
            is allocated for it.
        expert_backend: "auto", "dense", "blocked", "native", "ragged", "pallas" or "tokamax".
        dispatch: how tokens reach the devices that own their experts: "replicated", "gather", "all_to_all", or "auto",
            which says on stderr what it picked for a mesh of several devices, and why.
        seed: of the random weights.

    Raises:
        ValueError: for a source, option or checkpoint that cannot be used, a model that cannot be split over the mesh
            or does not fit its devices, or that another process of this run was not given as well, in one line that
            says what to do. Weights are only read once all else was checked.
    """
    if mesh != AUTO:
        mesh_config(mesh)
    if dispatch != "auto":
        dispatch_name(dispatch)
    backend = resolve_backend(expert_backend, jax.default_backend())
    checkpoint = None
    if isinstance(source, str) and source.startswith("random:"):
        config = named_config(source.removeprefix("random:"))
        resolved_dtype = resolve_dtype(dtype, auto="bfloat16")
    else:
        resolve_dtype(dtype, auto="float32")  # a wrong word is told before the folder is opened
        checkpoint = open_checkpoint(source)
        config = checkpoint.config
        resolved_dtype = resolve_dtype(dtype, auto=checkpoint.dtype)
    limit = sequence_limit(max_seq_len, config)
    if mesh == AUTO:
        split = auto_split(config, resolved_dtype, limit, dispatch, jax.devices())
    else:
        split = resolve_split(config, mesh, dispatch)
    parallel = _parallel(split, config)
    graphdef, abstract = abstract_model(config, backend, resolved_dtype, parallel)
    check_fits(param_placements(abstract, parallel.rules), parallel, resolved_dtype)
    tokenizer = None if checkpoint is None else Tokenizer.from_folder(checkpoint.folder)
    check_same(
        {
            "model configuration": config,
            "dtype": resolved_dtype,
            "mesh": parallel.rules.mesh,
            "dispatch": parallel.dispatch,
            "expert backend": backend,
            "max_seq_len": limit,
            "seed of random weights": seed,
        }
    )

    sharding_of = param_sharding(abstract, parallel)
    if checkpoint is None:
        params, ignored = random_params(abstract, config.num_experts, seed, sharding_of), {}
        no_tokenizer_reason = f"{source} has random weights and no tokenizer: give token ids instead of text"
    else:
        params, ignored = read_params(checkpoint, abstract, sharding_of)
        no_tokenizer_reason = None if tokenizer else missing_tokenizer_message(checkpoint.folder)
    return Model(
        config=config,
        tokenizer=tokenizer,
        no_tokenizer_reason=no_tokenizer_reason,
        max_seq_len=limit,
        dtype=resolved_dtype,
        expert_backend=backend,
        eos_token_ids=() if checkpoint is None else checkpoint.eos_token_ids,
        ignored=ignored,
        params=params,
        graphdef=graphdef,
        abstract=abstract,
        parallel=parallel,
        programs=Programs(parallel.sharding()),
    )


def make_parallel(config: ModelConfig, mesh: Mesh | AbstractMesh, dispatch: str) -> Parallel:
    """How a model of this configuration runs on a mesh whose axes are those of `sharding.MESH_AXES`.

    Raises:
        ValueError: when the experts cannot be split over it, or for an unknown dispatch.
    """
    name = dispatch_name(dispatch)
    return Parallel(mesh, make_rules(config, MeshConfig(**dict(mesh.shape)), name), name)


def _parallel(split: Split, config: ModelConfig) -> Parallel:
    """How the model runs on devices split so; says on stderr what was picked for whom asked for "auto"."""
    parallel = make_parallel(config, split.mesh.build(), split.dispatch)
    if split.remark and jax.process_index() == 0:
        print(f"moejax: {split.remark}", file=sys.stderr)
    return parallel


def mesh_devices(mesh: Mesh | AbstractMesh) -> list[Any]:
    """The devices of a mesh; an abstract one has none."""
    return list(mesh.devices.flat) if isinstance(mesh, Mesh) else []


def abstract_model(
    config: ModelConfig, backend: str, dtype: str, parallel: Parallel
) -> tuple[nnx.GraphDef[Any], dict[str, nnx.Param[Any]]]:
    """The structure of a model and its parameters by path, without making an array."""
    name = resolve_backend(backend, jax.default_backend())
    return split_module(Mixtral(config, name, parallel, dtype=jnp.dtype(dtype)))


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a checkpoint of this model must hold, by path; the same for every layout and mesh."""
    parallel = make_parallel(config, MeshConfig().abstract(), "replicated")
    _, abstract = abstract_model(config, "dense", "float32", parallel)  # the layout with the fewest parameters
    return {
        tensor.path: tensor.shape
        for path, variable in abstract.items()
        for tensor in logical_tensors(path, variable.get_value().shape, config.num_experts)
    }


def check_fits(placements: list[Placement], parallel: Parallel, dtype: str) -> None:
    """Raises ValueError when a device's part of the weights alone is more than its free memory."""
    needed = bytes_per_device(placements)
    memory = device_memory(mesh_devices(parallel.mesh))
    if needed > memory.free_bytes:
        several = parallel.rules.mesh.size > 1
        raise ValueError(
            f"the model needs {needed / 1e9:.1f} GB{' per device' if several else ''} for its {dtype} weights"
            f"{f' on mesh {parallel.rules.mesh}' if several else ''}, but {memory.device} has "
            f"{memory.free_bytes / 1e9:.1f} GB free (of {memory.total_bytes / 1e9:.1f}); use "
            f"{'more devices along expert or tensor' if several else 'a device with more memory, or a mesh of several'}"
            + (", or dtype=bfloat16" if dtype == "float32" else "")
        )


def read_params(
    checkpoint: Checkpoint, abstract: dict[str, nnx.Param[Any]], sharding_of: Callable[[str], NamedSharding]
) -> tuple[ParamTree, Mapping[str, str]]:
    """Reads every parameter onto its devices, one at a time, and names the tensors that were not used.

    Each part of a parameter that devices of this process hold is read once, and nothing else is.

    Raises:
        CheckpointError: for a missing, unexpected, wrongly shaped or damaged tensor, by name.
    """
    num_experts = checkpoint.config.num_experts
    leaves = {path: variable.get_value() for path, variable in abstract.items()}
    wanted = {path: logical_tensors(path, leaf.shape, num_experts) for path, leaf in leaves.items()}
    expected = {tensor.path: tensor.shape for tensors in wanted.values() for tensor in tensors}
    plan = checkpoint.plan(expected)
    params = {}
    for path, leaf in leaves.items():
        sources = [plan.sources[tensor.path] for tensor in wanted[path]]
        stacked = wanted[path][0].entry is not None
        parts = _Parts(checkpoint.tensors, sources, leaf.shape, leaf.dtype, stacked=stacked)
        params[path] = jax.make_array_from_callback(leaf.shape, sharding_of(path), parts.read, dtype=leaf.dtype)
    return params, plan.ignored


class _Parts:
    """The parts of one parameter, each read from the checkpoint when a device first asks for it."""

    def __init__(
        self, tensors: TensorSource, sources: list[str], shape: tuple[int, ...], dtype: Any, *, stacked: bool
    ) -> None:
        self._tensors, self._sources, self._shape, self._dtype = tensors, sources, shape, dtype
        self._stacked = stacked
        self._read: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def read(self, index: tuple[slice, ...] | None) -> np.ndarray:
        """The part at `index`, which has a slice for every axis."""
        assert index is not None, "a sharding gives every device an index"
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, self._shape, strict=True))
        if bounds not in self._read:
            host = np.empty([last - first for first, last in bounds], self._dtype)
            where = tuple(slice(*bound) for bound in bounds)
            if self._stacked:
                for entry, source in enumerate(self._sources[where[0]]):
                    self._tensors.read_into(source, host[entry], where[1:])
            else:
                self._tensors.read_into(self._sources[0], host, where)
            self._read[bounds] = host
        return self._read[bounds]
