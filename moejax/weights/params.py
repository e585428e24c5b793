"""Parameters of the modules: each holds the value of one declared weight.

The abstract tree, a checkpoint's expected shapes and random weights all derive from the declarations. Trees are plain
dictionaries keyed by dotted paths (`layers.0.attention.q`), which is what `jax.jit` dispatches fastest.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from moejax._sharding import Rules, check_logical_axes
from moejax.weights.layouts import LayoutName, declare
from moejax.weights.storage import Plain, Stored
from moejax.weights.weight import Weight

ParamTree = dict[str, Any]  # path -> the value of a weight, and the tables of where experts are


class Tables(nnx.Variable[Any]):
    """What a program is given beside the weights: where experts are."""


def param(
    weight: Weight,
    rules: Rules,
    *,
    dtype: jax.typing.DTypeLike,
    storage: type[Stored] = Plain,
    layout: LayoutName = "stacked",
    places: int = 0,
) -> nnx.Param[Any]:
    """The parameter of one weight. No array is made: values come from a checkpoint or are random.

    rules: how it is divided over devices.  storage: of a matrix that is multiplied, how that is done fastest.
    places: of experts: how many places there are for them, equally many on each device that shares them.
    """
    check_logical_axes(weight.axes, weight.shape)
    return nnx.Param(declare(weight, layout, places, rules, dtype, storage), weight=weight)


def optional_param(
    weights: Mapping[str, Weight], name: str, rules: Rules, *, dtype: jax.typing.DTypeLike
) -> nnx.Param[Any] | None:
    """The parameter called `name`, where the family declares one."""
    return param(weights[name], rules, dtype=dtype) if name in weights else None


def value(variable: nnx.Variable[Any] | None) -> Any:
    """The value in a variable; None of none."""
    return None if variable is None else variable.get_value()


def split(module: nnx.Module) -> tuple[nnx.GraphDef[Any], dict[str, nnx.Variable[Any]]]:
    """The structure of a module, and its declared parameters by path."""
    graphdef, state = nnx.split(module)
    return graphdef, {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def merge(graphdef: nnx.GraphDef[Any], abstract: Mapping[str, nnx.Variable[Any]], params: ParamTree) -> Any:
    """The module with `params` in it; for use inside a traced function."""
    flat = [(_key_path(path), variable.replace(params[path])) for path, variable in abstract.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def declared_values(abstract: Mapping[str, nnx.Variable[Any]]) -> dict[str, Any]:
    """The values without numbers of all weights, by path."""
    return {path: one.get_value() for path, one in abstract.items() if isinstance(one, nnx.Param)}


def _key_path(path: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))
