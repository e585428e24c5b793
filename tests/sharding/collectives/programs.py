"""Programs over a mesh of 8 simulated devices, for the tests that count their collectives."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import Array

from moejax._sharding.collectives import COLLECTIVE_KINDS, Collective, CollectiveKind

AXES = ("data", "expert", "tensor")
MESHES = ((2, 2, 2), (1, 4, 2), (1, 2, 4), (8, 1, 1))
# Every way to name axes: one, adjacent, not adjacent, against the order of the mesh, all.
NAMED_AXES = (("data",), ("expert",), ("expert", "tensor"), ("data", "tensor"), ("tensor", "expert"), AXES)
EVERY_COLLECTIVE = [
    (kind, mesh, axes)
    for kind in COLLECTIVE_KINDS
    for mesh in MESHES
    for axes in NAMED_AXES
    if kind != "collective-permute" or axes != ("tensor", "expert")  # JAX 0.11 refuses a permutation against the order
]
ROWS, COLUMNS = 16, 3  # of each device

Local = Callable[[Array], Array]


def mesh_of(shape: tuple[int, int, int]) -> Mesh:
    assert jax.device_count() == 8, f"{jax.devices()}: tests/conftest.py sets JAX_NUM_CPU_DEVICES"
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3)


def lower(local: Local, mesh: Mesh, dtype: str = "float32") -> jax.stages.Lowered:
    """Lowers `local` as the body of a shard_map over all axes: [16, 3] on every device."""
    spec = PartitionSpec(AXES)
    # The programs differ in what they replicate, and nothing here depends on its being known.
    mapped = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct((8 * ROWS, COLUMNS), jnp.dtype(dtype)))


def compiled_text(lowered: jax.stages.Lowered) -> str:
    text = lowered.compile().as_text()
    assert text is not None  # it is for backends that keep no text
    return text


def collective(kind: CollectiveKind, axes: tuple[str, ...], group: int) -> Local:
    """One collective of this kind over `axes`, which hold `group` devices."""
    match kind:
        case "all-reduce":
            return partial(lax.psum, axis_name=axes)
        case "all-gather":
            return partial(lax.all_gather, axis_name=axes, axis=0, tiled=True)
        case "reduce-scatter":
            return partial(lax.psum_scatter, axis_name=axes, scatter_dimension=0, tiled=True)
        case "all-to-all":
            return partial(lax.all_to_all, axis_name=axes, split_axis=0, concat_axis=0, tiled=True)
        case "collective-permute":
            ring = [(device, (device + 1) % group) for device in range(group)]
            return partial(lax.ppermute, axis_name=axes, perm=ring)


def expected(
    kind: CollectiveKind,
    mesh: Mesh,
    axes: tuple[str, ...],
    dtype: str = "float32",
    *,
    scope: str = "",
    loop: bool = False,
) -> list[Collective]:
    """What is counted for one collective of [16, 3] on every device over `axes`: nothing if they hold one device."""
    moved = tuple(axis for axis in AXES if axis in axes and mesh.shape[axis] > 1)
    group = math.prod(mesh.shape[axis] for axis in moved)
    elements = ROWS * COLUMNS * (group if kind == "all-gather" else 1)
    one = Collective(kind=kind, axes=moved, elements=elements, dtype=dtype, in_loop=loop, scope=scope)
    return [one] if moved else []


def nested_layers(x: Array) -> Array:
    """A decode step: in a while loop, two layers by one jitted function under a scope; a scan; a branch; then a sum.

    Runs all-reduces over (expert, tensor) and over expert twice each in the loop under decode/layer/moe, one over
    tensor in the scan, and outside of loops one over data in a branch, and one each under a and b.
    """

    @jax.jit
    def layer(x: Array) -> Array:
        with jax.named_scope("moe"):
            return lax.psum(x * 2, ("expert", "tensor")) + lax.pmax(x, "expert")

    def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        count, x = carry
        with jax.named_scope("layer"):
            return count + 1, jnp.sin(layer(layer(x)))

    with jax.named_scope("decode"):
        x = lax.while_loop(lambda carry: carry[0] < 5, step, (jnp.int32(0), x))[1]
    x = lax.scan(lambda x, _: (lax.psum(x, "tensor"), None), x, length=3)[0]
    x = lax.cond(x[0, 0] > 0, lambda x: lax.psum(x, "data"), lambda x: 2 * x, x)
    with jax.named_scope("a"):
        first = lax.psum(2 * x, "data")
    with jax.named_scope("b"):
        second = lax.psum(x + 2, "data")
    return first - second


def nested_layers_collectives(mesh: Mesh, dtype: str = "float32", *, scoped: bool = True) -> list[Collective]:
    """What `nested_layers` runs, in any order; without scopes if not `scoped`."""

    def one(axes: tuple[str, ...], scope: str, *, loop: bool) -> list[Collective]:
        return expected("all-reduce", mesh, axes, dtype, scope=scope if scoped else "", loop=loop)

    layer = one(("expert", "tensor"), "decode/layer/moe", loop=True) + one(("expert",), "decode/layer/moe", loop=True)
    outside = [("data", ""), ("data", "a"), ("data", "b")]
    sums = [item for axis, scope in outside for item in one((axis,), scope, loop=False)]
    return 2 * layer + one(("tensor",), "", loop=True) + sums
