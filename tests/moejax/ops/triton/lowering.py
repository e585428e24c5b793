"""Programs and their GPU kernels, lowered for CUDA without a GPU.

JAX 0.10 assumes a GPU where there is none; 0.11 asks the mesh of the innermost `shard_map` for its (abstract) device.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.pallas.triton import lowering as triton_lowering
from jaxlib.mlir import ir

from moejax._sharding import MeshConfig
from moejax.families.table import named_config, weights_of
from moejax.model.structure import make_parallel
from moejax.moe.layer import MoE
from moejax.ops.table import make_ops
from moejax.runtime.platform import Device, tracing_for
from moejax.weights.params import merge, split
from moejax.weights.weight import under

KERNEL_CALL = "__gpu$xla.gpu.triton"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel in a lowered program. module: its Triton code, parsed and verified, as text."""

    name: str
    grid: tuple[int, int, int]
    warps: int
    stages: int
    module: str


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A program lowered for CUDA: its StableHLO, operation by operation, and its kernels in order."""

    operations: list[Any]
    kernels: list[Kernel]
    owner: Any  # keeps the module of `operations` alive

    def count(self, *names: str) -> int:
        """Operations called so."""
        return sum(operation.operation.name in names for operation in self.operations)

    def result_sizes(self) -> Iterator[tuple[str, int]]:
        """Name and number of elements of every array that an operation makes."""
        for operation in self.operations:
            for result in operation.operation.results:
                if isinstance(result.type, ir.RankedTensorType):
                    yield operation.operation.name, math.prod(result.type.shape)


def lower(function: Callable[..., Any], *args: Any, device: Device) -> Lowered:
    """`function`, whose kernels run inside `shard_map` over an `abstract_mesh`, lowered for `device`.

    Arguments may be `jax.ShapeDtypeStruct`.

    Raises:
        RuntimeError: where JAX lowers Triton kernels in a way that is not known here.
    """
    with tracing_for(device):
        # A new function, so that nothing traced for another device is found again.
        lowered = jax.jit(lambda *args: function(*args)).trace(*args).lower(lowering_platforms=("cuda",))
    module: Any = lowered.compiler_ir("stablehlo")
    operations = list(_walk(module.operation))
    kernels = [_kernel(one) for one in operations if _is_kernel(one)]
    return Lowered(operations=operations, kernels=kernels, owner=(lowered, module))


def lower_alone(function: Callable[..., Any], *args: Any, device: Device) -> Lowered:
    """`function`, whose kernels run outside of any `shard_map`, lowered inside one over a single device."""
    spec = jax.sharding.PartitionSpec()
    inside = jax.shard_map(function, mesh=abstract_mesh(device), in_specs=spec, out_specs=spec, check_vma=False)
    return lower(inside, *args, device=device)


def abstract_mesh(device: Device, mesh: MeshConfig | None = None) -> jax.sharding.AbstractMesh:
    """A mesh of devices that need not be there; one device by default."""
    absent = jax.sharding.AbstractDevice(device_kind=device.kind, num_cores=None, platform="gpu")
    return (mesh or MeshConfig()).abstract().update(abstract_device=absent)


def abstract(tree: Any) -> Any:
    """Shapes and dtypes of a tree of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def lower_moe_layer(tokens: int, device: Device, backend: Any = "pallas") -> Lowered:
    """The mixture-of-experts layer of Mixtral 8x7B on so many tokens."""
    config = named_config("mixtral-8x7b")
    parallel = make_parallel(config, abstract_mesh(device), "replicated")
    weights = under({weight.parameter: weight for weight in weights_of(config)}, "layers.0.moe")
    places = config.num_experts
    graphdef, declared = split(MoE(config, weights, make_ops(backend), parallel, places=places, dtype=jnp.bfloat16))
    params = {path: variable.get_value() for path, variable in declared.items()}
    table = jax.ShapeDtypeStruct((3, places), jnp.int32)
    x = jax.ShapeDtypeStruct((tokens, 1, config.embed_dim), jnp.bfloat16)
    valid = jax.ShapeDtypeStruct((tokens, 1), jnp.bool_)
    return lower(lambda p, *args: merge(graphdef, declared, p)(*args), params, x, valid, table, device=device)


def _walk(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            for one in block.operations:
                yield one
                yield from _walk(one.operation)


def _is_kernel(one: Any) -> bool:
    if one.operation.name != "stablehlo.custom_call":
        return False
    target = ir.StringAttr(one.operation.attributes["call_target_name"]).value
    if "triton" in target and target != KERNEL_CALL:
        raise RuntimeError(f"JAX {jax.__version__} lowers Triton kernels to {target!r}, expected {KERNEL_CALL!r}")
    return target == KERNEL_CALL


def _kernel(one: Any) -> Kernel:
    config = ir.DictAttr(one.operation.attributes["mhlo.backend_config"])

    def number(key: str) -> int:
        return ir.IntegerAttr(config[key]).value

    with triton_lowering._new_ir_context():
        # Parsing verifies every operation, which lowering does not.
        module = str(ir.Module.parse(bytes(ir.StringAttr(config["ir"]).value_bytes)))
    return Kernel(
        name=ir.StringAttr(config["name"]).value,
        grid=(number("grid_x"), number("grid_y"), number("grid_z")),
        warps=number("num_warps"),
        stages=number("num_stages"),
        module=module,
    )
