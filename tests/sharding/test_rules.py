"""Rules: what is split over which mesh axes, and what is refused."""

from typing import Any

import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moejax._sharding import LOGICAL_AXES, MeshConfig, Rules, partition_spec
from tests.messages import refuses

MESH = MeshConfig(data=2, expert=4, tensor=3)
RULES = Rules.of(MESH, batch=("data",), experts=("expert",), mlp=("tensor",), vocab=("expert", "tensor"))


def test_what_is_not_named_is_whole() -> None:
    split = {axis: RULES[axis] for axis in LOGICAL_AXES if RULES[axis]}
    assert split == {"batch": ("data",), "experts": ("expert",), "mlp": ("tensor",), "vocab": ("expert", "tensor")}
    assert [RULES.parts(axis) for axis in ("embed", "batch", "experts", "mlp", "vocab")] == [1, 2, 4, 3, 12]


def test_axes_of_size_one_split_nothing() -> None:
    rules = Rules.of(MeshConfig(expert=4), batch=("data",), experts=("expert",), vocab=("expert", "tensor"))
    assert (rules["batch"], rules["experts"], rules["vocab"]) == ((), ("expert",), ("expert",))


@pytest.mark.parametrize(
    ("axes", "facts"),
    [
        ({"experts": ("experts",)}, ("experts", "'experts'", "data, expert, tensor")),
        ({"mlp": ("tensor", "tensor")}, ("mlp", "twice", "('tensor', 'tensor')")),
    ],
)
def test_rules_that_make_no_sense(axes: Any, facts: tuple[str, ...]) -> None:
    with refuses(ValueError, *facts):
        Rules.of(MESH, **axes)


def test_a_rule_for_an_unknown_axis_lists_the_known_ones() -> None:
    with refuses(ValueError, "'heads'", "batch, groups"):
        Rules.of(MESH, heads=("tensor",))


def test_what_one_device_holds() -> None:
    assert RULES.spec(("experts", "mlp", "embed")) == (("expert",), ("tensor",), ())
    assert RULES.local_shape(("experts", "mlp", "embed"), (8, 30, 5)) == (2, 10, 5)
    assert RULES.local_shape(("vocab", None), (24, 7)) == (2, 7)
    assert RULES.local_shape((), ()) == ()


@pytest.mark.parametrize(
    ("axes", "shape", "facts"),
    [
        (("batch", "embed"), (3, 4), ("batch", "3", "data = 2")),
        (("embed", "mlp"), (4, 31), ("mlp", "31", "tensor = 3")),
        (("vocab",), (18,), ("vocab", "18", "expert x tensor = 12")),
    ],
)
def test_what_does_not_divide(axes: Any, shape: tuple[int, ...], facts: tuple[str, ...]) -> None:
    with refuses(ValueError, *facts, "data=2,expert=4,tensor=3"):
        RULES.local_shape(axes, shape)


def test_two_axes_over_one_mesh_axis() -> None:
    with refuses(ValueError, "experts", "vocab", "'expert'", "data=2,expert=4,tensor=3"):
        RULES.spec(("experts", "vocab"))


def test_axes_are_checked_against_the_array() -> None:
    with refuses(ValueError, "('batch',)", "1 axes", "(2, 2)"):
        RULES.local_shape(("batch",), (2, 2))


def test_the_same_in_the_words_of_jax() -> None:
    """The first of several mesh axes is the outermost, for JAX and for us."""
    assert partition_spec(()) == PartitionSpec()
    spec = partition_spec(RULES.spec(("vocab", None, "batch")))
    assert spec == PartitionSpec(("expert", "tensor"), None, "data")
    assert NamedSharding(MESH.abstract(), spec).shard_shape((24, 5, 4)) == RULES.local_shape(
        ("vocab", None, "batch"), (24, 5, 4)
    )
