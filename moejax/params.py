"""Parameters: each is declared once, with its shape, dtype, logical axes and initialiser.

The abstract tree, a checkpoint's expected shapes and random weights all derive from that one declaration.
Trees are plain dictionaries keyed by dotted paths (`layers.0.attention.q`), which is what `jax.jit` dispatches
fastest and what a checkpoint names.
"""

from typing import Any

import jax
from flax import nnx
from jax import Array
from jax.nn.initializers import Initializer

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


def random_params(abstract: dict[str, nnx.Param[Any]], seed: int) -> ParamTree:
    """Random weights, made on the device one array at a time; equal shapes share one compilation."""

    def make(key: Array, init: Initializer, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
        return init(key, shape, dtype)

    make_on_device = jax.jit(make, static_argnums=(1, 2, 3))
    root = jax.random.key(seed)
    initializers: dict[str, Initializer] = {}  # one object per distinct initialiser, so that jit's cache hits
    params = {}
    for index, (path, variable) in enumerate(sorted(abstract.items())):
        init = variable.get_metadata("initializer")
        leaf = variable.get_value()
        init = initializers.setdefault(f"{path.rsplit('.', 1)[-1]}/{leaf.shape}", init)
        params[path] = make_on_device(jax.random.fold_in(root, index), init, leaf.shape, leaf.dtype)
    return params


def _key_path(path: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))
