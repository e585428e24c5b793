"""Parameters: each is declared once, with its shape, dtype, logical axes and initialiser.

The abstract tree, a checkpoint's expected shapes and random weights all derive from that one declaration.
Trees are plain dictionaries keyed by dotted paths (`layers.0.attention.q`), which is what `jax.jit` dispatches
fastest and what a checkpoint names.
"""

import re
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.nn.initializers import Initializer
from jax.sharding import NamedSharding

from sharding import LogicalAxes, check_logical_axes

ParamTree = dict[str, Array]


def param(
    shape: tuple[int, ...], axes: LogicalAxes, *, init: Initializer, dtype: jax.typing.DTypeLike
) -> nnx.Param[Array]:
    """Declares one parameter of a module. No array is made: values come from a checkpoint or from `random_params`."""
    check_logical_axes(axes, shape)
    declared: Any = jax.ShapeDtypeStruct(shape, dtype)
    return nnx.Param(declared, out_sharding=axes, eager_sharding=False, initializer=init)


def fan_in_normal(fan_in: int) -> Initializer:
    """Normal weights of standard deviation 1 / sqrt(fan_in), so that activations keep their scale."""
    return jax.nn.initializers.normal(fan_in**-0.5)


def split(module: nnx.Module) -> tuple[nnx.GraphDef[Any], dict[str, nnx.Param[Any]]]:
    """The structure of a module, and its declared parameters by path."""
    graphdef, state = nnx.split(module)
    return graphdef, {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def merge(graphdef: nnx.GraphDef[Any], abstract: dict[str, nnx.Param[Any]], params: ParamTree) -> Any:
    """The module with `params` in it; for use inside a traced function."""
    flat = [(_key_path(path), variable.replace(params[path])) for path, variable in abstract.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


class LogicalTensor(NamedTuple):
    """A tensor as a checkpoint names it: all of one parameter, or one entry of the leading axis of a stacked one."""

    path: str
    shape: tuple[int, ...]
    entry: int | None


def logical_tensors(path: str, shape: tuple[int, ...], num_experts: int) -> list[LogicalTensor]:
    """The tensors that fill the parameter `path`; checkpoints know each expert on its own, however it is laid out."""
    if ".experts.stacked." in path:
        return [LogicalTensor(path.replace(".stacked.", f".{i}."), shape[1:], i) for i in range(num_experts)]
    if slot := re.search(r"\.experts\.slots\.(\d+)\.", path):
        per_device = num_experts // shape[0]
        return [
            LogicalTensor(path.replace(slot[0], f".experts.{i * per_device + int(slot[1])}."), shape[1:], i)
            for i in range(shape[0])
        ]
    return [LogicalTensor(path, shape, None)]


def random_params(
    abstract: dict[str, nnx.Param[Any]], num_experts: int, seed: int, sharding_of: Callable[[str], NamedSharding]
) -> ParamTree:
    """Random weights, made on the devices one array at a time; equal shapes share one compilation.

    Each logical tensor has a key of its own, so the weights depend on the seed and not on layout or mesh.
    """
    root = np.asarray(jax.random.key_data(jax.random.key(seed)))
    makers: dict[tuple[Any, ...], Callable[..., Array]] = {}
    params = {}
    for path, variable in abstract.items():
        leaf, init = variable.get_value(), variable.get_metadata("initializer")
        tensors = logical_tensors(path, leaf.shape, num_experts)
        stacked, sharding = tensors[0].entry is not None, sharding_of(path)
        kind = (path.rsplit(".", 1)[-1], leaf.shape, leaf.dtype, sharding)  # arrays of one kind have one initialiser
        if kind not in makers:
            makers[kind] = jax.jit(
                partial(_make, init=init, shape=tensors[0].shape, dtype=leaf.dtype, stacked=stacked),
                out_shardings=sharding,
            )
        params[path] = makers[kind](root, np.array([zlib.crc32(tensor.path.encode()) for tensor in tensors], np.uint32))
    return params


def _make(
    root: Array,
    names: Array,
    *,
    init: Initializer,
    shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike,
    stacked: bool,
) -> Array:
    """The tensors whose names have these hashes, stacked, or the only one."""
    made = jax.vmap(lambda name: init(jax.random.fold_in(jax.random.wrap_key_data(root), name), shape, dtype))(names)
    return made if stacked else made[0]


def _key_path(path: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))
