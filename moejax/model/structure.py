"""A model without its numbers: what there is before weights are read, and all that compiling it needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import AbstractMesh, Mesh

from moejax._sharding import LogicalAxes, MeshConfig, Placement
from moejax.families.config import ModelConfig
from moejax.families.table import weights_of
from moejax.model.gradients import refuse_gradients
from moejax.model.model import Transformer
from moejax.model.scoring import teacher_forced
from moejax.moe.parallel import Parallel
from moejax.moe.split import dispatch_name, make_rules, micro_batch_count
from moejax.ops.table import BACKENDS, BackendName, backend_name, make_ops, resolve_backend
from moejax.runtime.ambient import in_settled
from moejax.weights.counts import num_places, weight_placements
from moejax.weights.layouts import Piece, pack, unpack
from moejax.weights.params import ParamTree, declared_values, merge, split
from moejax.weights.placement import PhysicalExperts
from moejax.weights.storage import Stored
from moejax.weights.weight import Weight

PLACEMENT = "placement"  # the entry of a parameter tree that says which expert each place holds


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A model without its numbers: its modules, how it runs on a mesh, and where its experts are.

    abstract: its parameters by path, without arrays.  experts: what each place of every MoE layer holds.
    """

    config: ModelConfig
    backend: BackendName
    dtype: str
    parallel: Parallel
    experts: PhysicalExperts
    graphdef: nnx.GraphDef[Any] = field(repr=False)
    abstract: dict[str, nnx.Variable[Any]] = field(repr=False)

    def merged(self, params: ParamTree) -> Transformer:
        """The module with `params` in it, for use inside a traced function.

        Raises:
            ValueError: for other params, and where gradients are taken with respect to them and there are none.
        """
        self._check_params(params)
        return merge(self.graphdef, self.abstract, self.differentiated(params))

    def scored(self, params: ParamTree, tokens: Any, lengths: Any) -> Array:
        """`teacher_forced` with given parameters: a part of what is being traced, else compiled once for each shape.

        Raises:
            ValueError: as `merged`.
        """
        self._check_params(params)
        return self._scored(params, tokens, lengths)

    @cached_property
    def _scored(self) -> Callable[[ParamTree, Array, Array | None], Array]:
        return jax.jit(lambda params, tokens, lengths: teacher_forced(self.merged(params), tokens, lengths))

    def _check_params(self, params: Any) -> None:
        if not isinstance(params, Mapping) or not params.keys() >= self.abstract.keys():
            raise ValueError(
                f"params must be those of a model, as model.params has them, got a {type(params).__name__}"
            )

    def differentiated(self, tree: Any) -> Any:
        """The same weights; under `jax.grad` an error where this backend or dtype has no gradients."""
        # Keys and values in 16 bits are kept as bits, through which no gradient passes.
        if BACKENDS[self.backend].differentiable and self.dtype == "float32":
            return tree
        able = next(name for name, row in BACKENDS.items() if row.differentiable)
        return refuse_gradients(
            tree,
            f"a model in {self.dtype} with expert backend {self.backend!r} has no gradients: load it with "
            f"dtype='float32', expert_backend={able!r}",
        )

    def placements(self) -> list[Placement]:
        """Where every parameter lives: its split, bytes per device, and what is repeated."""
        return weight_placements(weights_of(self.config), self.parallel.rules, self.dtype)

    def shapes(self) -> ParamTree:
        """Shape, dtype and place of every array, for programs that are compiled without numbers."""

        def whole(array: Any, axes: LogicalAxes) -> Any:
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=self.parallel.sharding(*axes))

        tables = self.abstract[PLACEMENT].get_value()
        shapes: ParamTree = {path: value.per_array(whole) for path, value in declared_values(self.abstract).items()}
        return shapes | {PLACEMENT: whole(tables, (None,) * len(tables.shape))}

    def pack(self, make: Callable[[Weight, Piece, Sequence[int], Stored], Stored]) -> ParamTree:
        """The parameters: `make(weight, piece, what the places hold, declared value)` gives the numbers of each piece.

        The experts' tables are part of it.
        """
        values, params = declared_values(self.abstract), {}
        peers, layout = self.parallel.rules.parts("experts"), make_ops(self.backend).layout
        for weight in weights_of(self.config):
            held = self.held(weight)

            def one(piece: Piece, declared: Stored, weight: Weight = weight, held: Any = held) -> Stored:
                return make(weight, piece, held, declared)

            params[weight.parameter] = pack(
                weight, values[weight.parameter], layout, self.experts.num_places, peers, one
            )
        return params | {PLACEMENT: self.tables(self.experts)}

    @in_settled
    def unpack(self, params: ParamTree) -> dict[str, Array]:
        """The logical tensors of all parameters, by path."""
        peers, layout = self.parallel.rules.parts("experts"), make_ops(self.backend).layout
        found: dict[str, Array] = {}
        for weight in weights_of(self.config):
            found |= unpack(weight, params[weight.parameter], layout, self.held(weight), peers)
        return found

    def held(self, weight: Weight) -> tuple[int, ...]:
        """The expert in each place of a weight's layer; () for a weight that is no expert's."""
        if weight.experts is None:
            return ()
        layer = int(weight.path.split(".")[1])
        return self.experts.held[self.config.moe_layers.index(layer)]

    def tables(self, experts: PhysicalExperts) -> Array:
        """What a program is given of where experts are, whole on every device."""
        tables = experts.tables()
        whole = self.parallel.sharding()
        return jax.make_array_from_callback(tables.shape, whole, lambda index: tables[index], dtype=tables.dtype)


def make_parallel(config: ModelConfig, mesh: Mesh | AbstractMesh, dispatch: str, *, micro_batches: int = 1) -> Parallel:
    """How a model of this configuration runs on a mesh whose axes are those of `sharding.MESH_AXES`.

    Raises:
        ValueError: when the model cannot be split over it, for an unknown dispatch, or for less than one micro-batch.
    """
    name = dispatch_name(dispatch)
    rules = make_rules(config, MeshConfig(**dict(mesh.shape)), name)
    return Parallel(mesh, rules, name, micro_batch_count(micro_batches))


def mesh_devices(mesh: Mesh | AbstractMesh) -> list[Any]:
    """The devices of a mesh; an abstract one has none."""
    return list(mesh.devices.flat) if isinstance(mesh, Mesh) else []


def make_structure(
    config: ModelConfig, backend: str, dtype: str, parallel: Parallel, *, experts: PhysicalExperts | None = None
) -> Structure:
    """A model without its numbers; no array is made.

    Args:
        backend: how experts are computed; whether it can run here is not asked but for "auto".
        experts: what each place of the MoE layers holds; None for the experts in order, and empty places after them
            where they do not divide over the devices.

    Raises:
        ValueError: for an unknown backend, or places that do not divide over the devices.
    """
    name = resolve_backend(backend, jax.default_backend()) if backend == "auto" else backend_name(backend)
    peers, layers = parallel.rules.parts("experts"), len(config.moe_layers)
    held = experts or PhysicalExperts.in_order(layers, config.num_experts, num_places(config.num_experts, peers))
    if held.num_places % peers or len(held.held) != layers:
        raise ValueError(
            f"{held.num_places} places in {len(held.held)} layers do not suit {layers} MoE layers on {peers} devices "
            "along expert: give each layer as many, a multiple of the devices"
        )
    module = Transformer(config, make_ops(name), parallel, places=held.num_places, dtype=jnp.dtype(dtype))
    graphdef, abstract = split(module)
    return Structure(
        config=config,
        backend=name,
        dtype=jnp.dtype(dtype).name,
        parallel=parallel,
        experts=held,
        graphdef=graphdef,
        abstract=abstract,
    )
