"""Names of array axes."""

import pytest

from moejax._sharding import LOGICAL_AXES, check_logical_axes
from tests.messages import refuses


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ((), ()),
        (("embed",), (4,)),
        (("experts", "mlp", "embed"), (8, 16, 4)),
        (("batch", None, None), (2, 3, 4)),
        ((None, None), (0, 1)),
    ],
)
def test_axes_that_name_an_array(axes: tuple, shape: tuple[int, ...]) -> None:
    check_logical_axes(axes, shape)


def test_every_known_name_is_accepted() -> None:
    assert len(LOGICAL_AXES) == len(set(LOGICAL_AXES)) == 11
    check_logical_axes(LOGICAL_AXES, (1,) * 11)


@pytest.mark.parametrize("name", ["heads", "expert", "Embed", ""])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with refuses(ValueError, repr(name), ", ".join(LOGICAL_AXES)):
        check_logical_axes(("embed", name), (4, 4))  # type: ignore[arg-type]


def test_a_name_twice() -> None:
    """Two axes of one array cannot be split over the same devices."""
    with refuses(ValueError, "('embed', 'embed')", "None"):
        check_logical_axes(("embed", "embed"), (4, 4))


@pytest.mark.parametrize("shape", [(), (4,), (4, 4, 4)])
def test_a_count_that_is_not_the_rank(shape: tuple[int, ...]) -> None:
    with refuses(ValueError, "('mlp', 'embed')", "2 axes", shape):
        check_logical_axes(("mlp", "embed"), shape)
