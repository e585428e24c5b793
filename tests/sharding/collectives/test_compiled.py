"""Collectives of programs that XLA compiled for 8 simulated devices."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from moejax._sharding.collectives import Collective, CollectiveKind, compiled_collectives
from tests.messages import refuses
from tests.sharding.collectives.programs import (
    COLUMNS,
    EVERY_COLLECTIVE,
    ROWS,
    collective,
    compiled_text,
    expected,
    lower,
    mesh_of,
    nested_layers,
    nested_layers_collectives,
)


@pytest.mark.parametrize(("kind", "shape", "axes"), EVERY_COLLECTIVE)
def test_every_kind_over_every_axes(kind: CollectiveKind, shape: tuple[int, int, int], axes: tuple[str, ...]) -> None:
    mesh = mesh_of(shape)
    text = compiled_text(lower(collective(kind, axes, math.prod(mesh.shape[axis] for axis in axes)), mesh))
    assert compiled_collectives(text, mesh.shape) == expected(kind, mesh, axes)


def test_an_all_to_all_as_a_tuple_of_parts_is_one() -> None:
    mesh = mesh_of((1, 4, 2))
    text = compiled_text(lower(collective("all-to-all", ("expert",), 4), mesh))
    # XLA:CPU prints four operands, one for each peer: if it stops, this test no longer shows what its name says.
    assert text.count("get-tuple-element(%all-to-all") == 4
    assert compiled_collectives(text, mesh.shape) == expected("all-to-all", mesh, ("expert",))


def test_loops_calls_branches_and_scopes() -> None:
    mesh = mesh_of((2, 2, 2))
    text = compiled_text(lower(nested_layers, mesh))
    assert Counter(compiled_collectives(text, mesh.shape)) == Counter(nested_layers_collectives(mesh))


def test_members_of_a_merged_operation_keep_their_scopes() -> None:
    mesh = mesh_of((2, 2, 2))

    def local(x: Array) -> Array:
        with jax.named_scope("attention"):
            first = lax.psum(x[:4] * 2, "tensor")
        with jax.named_scope("moe"):
            second = lax.psum(x + 1, "tensor")
        return jnp.concatenate([first, second])

    text = compiled_text(lower(local, mesh))
    assert text.count(" all-reduce(") == 1
    kind, axes = "all-reduce", ("tensor",)
    found = compiled_collectives(text, mesh.shape)
    assert Counter(found) == Counter(
        Collective(kind=kind, axes=axes, elements=rows * COLUMNS, dtype="float32", in_loop=False, scope=scope)
        for rows, scope in ((4, "attention"), (ROWS, "moe"))
    )


def test_bfloat16_is_widened_and_has_as_many_elements() -> None:
    mesh = mesh_of((2, 2, 2))
    text = compiled_text(lower(nested_layers, mesh, "bfloat16"))
    assert Counter(compiled_collectives(text, mesh.shape)) == Counter(nested_layers_collectives(mesh, "float32"))


def test_collectives_that_sharding_constraints_lead_to() -> None:
    mesh = mesh_of((2, 2, 2))

    def constrain(x: Array, *spec: str | tuple[str, ...] | None) -> Array:
        return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def feed_forward(x: Array, w_up: Array, w_down: Array, w_head: Array) -> tuple[Array, Array]:
        hidden = constrain(constrain(x, "data", None) @ w_up, "data", ("expert", "tensor"))
        with jax.named_scope("down"):
            out = constrain(hidden @ w_down, "data", None)
        with jax.named_scope("gathered"):
            return out, constrain(constrain(w_head, ("expert", "tensor"), None), None, None)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 8), (8, 32), (32, 8), (8, 32))]
    text = compiled_text(jax.jit(feed_forward).lower(*shapes))
    axes = ("expert", "tensor")
    assert Counter(compiled_collectives(text, mesh.shape)) == Counter(
        [
            # [8, 8] of each data group's rows; the [8, 32] head, whole after the gather.
            Collective(kind="all-reduce", axes=axes, elements=64, dtype="float32", in_loop=False, scope="down"),
            Collective(kind="all-gather", axes=axes, elements=256, dtype="float32", in_loop=False, scope="gathered"),
        ]
    )


def test_resharding_spelled_with_axes_of_a_mesh() -> None:
    mesh = mesh_of((1, 8, 1))

    def reshard(x: Array) -> Array:
        x = lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("expert", None))) * 2
        return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, "expert"))) + 1

    text = compiled_text(jax.jit(reshard).lower(jax.ShapeDtypeStruct((16, 16), jnp.float32)))
    assert "replica_groups=mesh[" in text
    found = compiled_collectives(text, mesh.shape)
    assert [(one.kind, one.axes, one.elements) for one in found] == [("all-to-all", ("expert",), 32)]


def test_a_mesh_of_another_size_is_refused() -> None:
    mesh = mesh_of((2, 2, 2))
    text = compiled_text(lower(collective("all-reduce", ("tensor",), 2), mesh))
    with refuses(ValueError, "pass the mesh"):
        compiled_collectives(text, {"data": 1, "expert": 2, "tensor": 2})


def test_groups_that_no_mesh_axes_have_are_refused() -> None:
    text = compiled_text(lower(collective("all-reduce", ("expert",), 2), mesh_of((2, 2, 2))))
    with refuses(ValueError, "[[0, 2]", "{'data': 8"):
        compiled_collectives(text, {"data": 8, "expert": 1, "tensor": 1})


def test_a_text_that_is_no_compiled_program_is_refused() -> None:
    text = lower(lambda x: x, mesh_of((2, 2, 2))).as_text()
    with refuses(ValueError, "ENTRY", "compiled.as_text()"):
        compiled_collectives(text, {"data": 2, "expert": 2, "tensor": 2})
