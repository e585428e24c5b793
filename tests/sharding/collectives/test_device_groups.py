"""Mesh axes from groups of devices; the spellings are in test_compiled_text.py, read as XLA prints them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax._sharding.collectives.device_groups import (
    axes_of_groups,
    axes_of_pairs,
    dense_groups,
    hlo_groups,
    stablehlo_groups,
)
from tests.messages import refuses


@st.composite
def meshes_and_axes(draw: st.DrawFn) -> tuple[dict[str, int], tuple[str, ...]]:
    mesh = {name: draw(st.integers(1, 4)) for name in "abcd"[: draw(st.integers(1, 4))]}
    return mesh, tuple(draw(st.permutations(sorted(mesh)))[: draw(st.integers(0, len(mesh)))])


@given(meshes_and_axes(), st.randoms())
def test_groups_give_back_the_axes_they_were_made_from(drawn: tuple, random) -> None:
    mesh, axes = drawn
    groups: dict[tuple[int, ...], list[int]] = {}
    for device, coordinates in enumerate(np.ndindex(*mesh.values())):
        fixed = tuple(at for name, at in zip(mesh, coordinates, strict=True) if name not in axes)
        groups.setdefault(fixed, []).append(device)
    listed = list(groups.values())
    random.shuffle(listed)
    for group in listed:
        random.shuffle(group)
    moved = tuple(name for name in mesh if name in axes and mesh[name] > 1)
    assert axes_of_groups(listed, mesh) == moved
    assert math.prod(mesh[name] for name in moved) == len(listed[0])


@pytest.mark.parametrize(
    ("groups", "facts"),
    [
        ([[0, 1], [2, 3]], ("each", "8 devices")),
        ([[0, 1, 2, 3], [4, 5, 6, 8]], ("each", "8 devices")),
        ([[0, 1, 2, 3], [3, 5, 6, 7]], ("each", "8 devices")),
        ([[0, 3], [1, 2], [4, 7], [5, 6]], ("no product",)),
        ([[0, 1], [2, 4], [3, 5], [6, 7]], ("no product",)),
        ([[0, 1], [2, 3], [4, 5, 6, 7]], ("no product",)),
        ([[0, 1, 2], [3, 4, 5], [6, 7]], ("no product",)),
    ],
)
def test_other_groups_are_refused_and_printed(groups: list[list[int]], facts: tuple[str, ...]) -> None:
    with refuses(ValueError, *facts) as error:
        axes_of_groups(groups, {"data": 2, "expert": 2, "tensor": 2})
    assert str(groups) in str(error.value)


def test_a_permutation_beyond_the_mesh_is_refused() -> None:
    with refuses(ValueError, "device 4", "{'tensor': 4}"):
        axes_of_pairs([[0, 4]], {"tensor": 4})


@pytest.mark.parametrize("spelling", ["{{0,1},{2,3}", "[2,4]", "{{},{}}", "mesh<'a'=8> {'a'}", ""])
def test_other_spellings_are_refused(spelling: str) -> None:
    with refuses(ValueError, "hlo_groups"):
        hlo_groups(spelling, 8)


@pytest.mark.parametrize(
    ("spelling", "groups"),
    [
        ("dense<[[0, 2], [1, 3]]> : tensor<2x2xi64>", [[0, 2], [1, 3]]),
        ("dense<0> : tensor<1x1xi64>", [[0]]),
        ("dense<> : tensor<0x2xi64>", []),
        ('dense<"0x00000000000000000100000000000000"> : tensor<1x2xi64>', [[0, 1]]),
    ],
    ids=["list", "one number", "none", "bytes"],
)
def test_stablehlo_groups(spelling: str, groups: list[list[int]]) -> None:
    assert dense_groups(spelling) == groups


def test_other_stablehlo_groups_are_refused() -> None:
    with refuses(ValueError, "dense<...> : tensor<NxMxi64>"):
        dense_groups("dense<[0, 1]> : tensor<2xi64>")


MESHES = {"mesh_0": '["a"=2, "b"=3]', "turned": '["a"=2, "b"=3], device_ids=[1, 0, 2, 3, 4, 5]'}
AXES = "#stablehlo.replica_group_mesh_axes<mesh = @{}, axes = [{}]>"
AXIS = '#stablehlo.axis_ref<name = "{}">'


@pytest.mark.parametrize(
    ("axes", "groups"),
    [("a", [[0, 3], [1, 4], [2, 5]]), ("b", [[0, 1, 2], [3, 4, 5]]), ("ab", [[0, 1, 2, 3, 4, 5]])],
)
def test_stablehlo_groups_of_mesh_axes(axes: str, groups: list[list[int]]) -> None:
    spelling = AXES.format("mesh_0", ", ".join(map(AXIS.format, axes)))
    assert stablehlo_groups(spelling, MESHES) == groups
    assert stablehlo_groups("dense<[[0, 1]]> : tensor<1x2xi64>", {}) == [[0, 1]]


@pytest.mark.parametrize(
    ("mesh", "axis"),
    [
        ("mesh_1", AXIS.format("a")),
        ("turned", AXIS.format("a")),
        ("mesh_0", '#stablehlo.axis_ref<name = "a", sub_axis_info = #stablehlo.sub_axis_info<pre_size = 1, size = 2>>'),
    ],
    ids=["no such mesh", "devices in another order", "a part of an axis"],
)
def test_other_mesh_axes_are_refused(mesh: str, axis: str) -> None:
    with refuses(ValueError, "whole axes", "in order"):
        stablehlo_groups(AXES.format(mesh, axis), MESHES)
