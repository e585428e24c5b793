"""Collectives of programs before XLA compiles them."""

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array

from moejax._sharding.collectives import Collective, CollectiveKind, lowered_collectives
from tests.messages import refuses
from tests.sharding.collectives.programs import (
    AXES,
    EVERY_COLLECTIVE,
    collective,
    compiled_text,
    expected,
    lower,
    mesh_of,
    nested_layers,
    nested_layers_collectives,
)

NAMED_AXES = "replica_groups = #stablehlo.replica_group_mesh_axes<"  # how JAX 0.11 writes groups; before, as numbers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "shape", "axes"), EVERY_COLLECTIVE)
def test_every_kind_over_every_axes(
    kind: CollectiveKind, shape: tuple[int, int, int], axes: tuple[str, ...], dtype: str
) -> None:
    mesh = mesh_of(shape)
    local = collective(kind, axes, math.prod(mesh.shape[axis] for axis in axes))
    text = lower(local, mesh, dtype).as_text()
    assert lowered_collectives(text, mesh.shape) == expected(kind, mesh, axes, dtype)


@pytest.mark.parametrize("scoped", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loops_calls_branches_and_scopes(dtype: str, scoped: bool) -> None:
    mesh = mesh_of((2, 2, 2))
    text = lower(nested_layers, mesh, dtype).as_text(debug_info=scoped)
    found = lowered_collectives(text, mesh.shape)
    assert Counter(found) == Counter(nested_layers_collectives(mesh, dtype, scoped=scoped))


def test_a_scope_around_a_shard_map_is_kept() -> None:
    mesh = mesh_of((2, 2, 2))
    mapped = jax.shard_map(
        lambda x: lax.psum(x, "tensor"), mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
    )

    def program(x: Array) -> Array:
        with jax.named_scope("step"):
            return mapped(x)

    text = jax.jit(program).lower(jax.ShapeDtypeStruct((4,), jnp.int32)).as_text(debug_info=True)
    one = Collective(kind="all-reduce", axes=("tensor",), elements=4, dtype="int32", in_loop=False, scope="step")
    assert lowered_collectives(text, mesh.shape) == [one]


def test_scopes_with_braces_do_not_end_functions() -> None:
    mesh = mesh_of((2, 2, 2))

    def local(x: Array) -> Array:
        with jax.named_scope("}moe"):
            return lax.psum(x, "tensor")

    text = lower(local, mesh).as_text(debug_info=True)
    assert lowered_collectives(text, mesh.shape) == expected("all-reduce", mesh, ("tensor",), scope="}moe")


def test_the_decomposition_of_a_composite_operation_is_counted() -> None:
    mesh = mesh_of((2, 2, 2))
    composite = lax.composite(lambda x: lax.psum(x, "tensor"), name="test.sum")
    text = lower(composite, mesh).as_text()
    assert "stablehlo.composite" in text
    assert lowered_collectives(text, mesh.shape) == expected("all-reduce", mesh, ("tensor",))


def test_a_text_without_the_end_is_refused() -> None:
    mesh = mesh_of((2, 2, 2))
    head, function, _ = lower(nested_layers, mesh).as_text().partition("  func.func private @")
    assert function
    with pytest.raises(ValueError, match=r"calls '\w+', which its text does not define"):
        lowered_collectives(head, mesh.shape)


def test_more_devices_than_mlir_prints_as_numbers() -> None:
    mesh = AbstractMesh((2, 16, 8), AXES, axis_types=(AxisType.Auto,) * 3)
    spec = PartitionSpec(AXES)
    mapped = jax.shard_map(
        lambda x: lax.psum(x, ("data", "tensor")), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    text = jax.jit(mapped).trace(jax.ShapeDtypeStruct((256,), jnp.float32)).lower(lowering_platforms=("cpu",)).as_text()
    assert 'replica_groups = dense<"0x' in text or NAMED_AXES in text
    axes = ("data", "tensor")
    one = Collective(kind="all-reduce", axes=axes, elements=1, dtype="float32", in_loop=False, scope="")
    assert lowered_collectives(text, mesh.shape) == [one]


@pytest.mark.parametrize("permutation", [[], [(0, 0), (5, 5)]])
def test_permutations_that_move_nothing(permutation: list[tuple[int, int]]) -> None:
    mesh = mesh_of((8, 1, 1))
    text = lower(lambda x: lax.ppermute(x, "data", permutation), mesh).as_text()
    assert "stablehlo.collective_permute" in text
    assert lowered_collectives(text, mesh.shape) == []


def test_a_kind_that_is_not_counted_is_refused() -> None:
    mesh = mesh_of((8, 1, 1))

    def local(x: Array) -> Array:
        sizes = jnp.ones(8, jnp.int32)
        return lax.ragged_all_to_all(x, x, sizes, sizes, sizes, sizes, axis_name="data")

    with refuses(ValueError, "ragged_all_to_all", "all-reduce, all-gather"):
        lowered_collectives(lower(local, mesh).as_text(), mesh.shape)


def test_groups_that_no_mesh_axes_have_are_refused() -> None:
    text = lower(collective("all-reduce", ("expert",), 2), mesh_of((2, 2, 2))).as_text()
    with refuses(ValueError, "[[0, 2]", "{'data': 8"):
        lowered_collectives(text, {"data": 8, "expert": 1, "tensor": 1})


def test_another_spelling_of_groups_is_refused() -> None:
    text = lower(collective("all-reduce", ("tensor",), 2), mesh_of((2, 2, 2))).as_text()
    other, found = re.subn(r"replica_groups = .*?(i64|\]>)", "replica_groups = #stablehlo.something_new<2>", text)
    assert found == 1
    with refuses(ValueError, "'#stablehlo.something_new<2>", "dense", "axes of a mesh"):
        lowered_collectives(other, {"data": 2, "expert": 2, "tensor": 2})


def test_sizes_that_are_not_static_are_refused() -> None:
    text = lower(collective("all-reduce", ("tensor",), 2), mesh_of((2, 2, 2))).as_text()
    assert "}) : (tensor<16x3xf32>)" in text
    with refuses(ValueError, "'?'", "static"):
        lowered_collectives(text.replace("(tensor<16x", "(tensor<?x"), {"data": 2, "expert": 2, "tensor": 2})


def test_a_text_that_is_no_lowered_program_is_refused() -> None:
    mesh = mesh_of((2, 2, 2))
    text = compiled_text(lower(lambda x: x, mesh))
    with refuses(ValueError, "@main", "lowered.as_text()"):
        lowered_collectives(text, mesh.shape)
