"""The names of array axes that a mesh may split.

`batch` has one entry per sequence; `groups` has one (or a share of the batch) per group of devices that together hold
all experts. `mlp` is the hidden axis of experts, `hidden` that of a feed-forward network without experts.
"""

from typing import Literal, get_args

LogicalAxis = Literal[
    "batch", "groups", "sequence", "vocab", "embed", "q_heads", "kv_heads", "head_dim", "experts", "mlp", "hidden"
]
LogicalAxes = tuple[LogicalAxis | None, ...]

LOGICAL_AXES: tuple[LogicalAxis, ...] = get_args(LogicalAxis)


def check_logical_axes(axes: LogicalAxes, shape: tuple[int, ...]) -> None:
    """Checks that `axes` names every axis of an array of `shape`, each name at most once.

    Raises:
        ValueError: for an unknown name, a repeated name, or a count that is not the array's rank.
    """
    named = [axis for axis in axes if axis is not None]
    if unknown := [axis for axis in named if axis not in LOGICAL_AXES]:
        raise ValueError(f"unknown logical axis {unknown[0]!r}; the known ones are {', '.join(LOGICAL_AXES)}")
    if len(set(named)) != len(named):
        raise ValueError(f"logical axes {axes} name one axis twice; give the second one None")
    if len(axes) != len(shape):
        raise ValueError(f"logical axes {axes} name {len(axes)} axes, but the array has shape {shape}")
