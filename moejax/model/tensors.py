"""Weights of a model by name: read, and replaced, whatever the layout, the storage and the mesh."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from moejax._sharding import LogicalAxes
from moejax.families.config import ModelConfig
from moejax.families.table import find_tensor, weights_of
from moejax.model.structure import Structure
from moejax.moe.parallel import Parallel
from moejax.ops.table import make_ops
from moejax.runtime.ambient import in_settled
from moejax.weights.layouts import Piece, put, take
from moejax.weights.params import ParamTree
from moejax.weights.storage import Stored
from moejax.weights.weight import LogicalTensor


@in_settled
def read_tensor(structure: Structure, params: ParamTree, name: str) -> Array:
    """The tensor called `name`, whole on every device of the mesh.

    Raises:
        ValueError: for a name that no tensor has.
    """
    tensor = find_tensor(name, structure.config)
    weight, parallel = tensor.weight, structure.parallel
    layout, peers = make_ops(structure.backend).layout, parallel.rules.parts("experts")
    found = take(weight, params[weight.parameter], layout, structure.held(weight), peers, tensor.expert)
    return jax.device_put(found.copy(), parallel.sharding())  # a caller may donate it


@in_settled
def with_tensors(structure: Structure, params: ParamTree, new: Mapping[str, ArrayLike]) -> ParamTree:
    """`params` with the tensors that `new` names, each array where it was.

    Raises:
        ValueError: as `checked`, and for finite numbers that are infinite in the model's dtype.
    """
    sharding, placed = structure.parallel.sharding, {}
    for path, (tensor, numbers) in checked(new, structure.config).items():
        _check_rounded(path, numbers, structure.dtype)
        placed[path] = jax.device_put(jnp.array(numbers), sharding(*tensor.weight.axes))  # as above
    changed = replace_tensors(structure, params, placed)
    # Compiled programs take arrays only from where they were when the program was made.
    return {
        path: value if value is params[path] else jax.tree.map(jax.device_put, value, _places(params[path]))
        for path, value in changed.items()
    }


def replace_tensors(structure: Structure, params: ParamTree, new: Mapping[str, Array]) -> ParamTree:
    """The same for use inside a traced function.

    Raises:
        ValueError: as `checked`; and under `jax.grad`, where the model has no gradients.
    """
    parallel, layout = structure.parallel, make_ops(structure.backend).layout
    found, by_weight = checked(new, structure.config), dict[str, dict[int | None, Array]]()
    numbers = structure.differentiated({path: jnp.asarray(array) for path, (_, array) in found.items()})
    for path, (tensor, _) in found.items():
        by_weight.setdefault(tensor.weight.parameter, {})[tensor.expert] = numbers[path]

    def replace(part: Stored, piece: Piece, entries: tuple[int, ...], numbers: Array) -> Stored:
        return _with_numbers(part, numbers, axes=piece.axes, entries=entries, parallel=parallel)

    changed = {
        weight.parameter: put(
            weight,
            params[weight.parameter],
            layout,
            structure.held(weight),
            parallel.rules.parts("experts"),
            by_weight[weight.parameter],
            replace,
        )
        for weight in weights_of(structure.config)
        if weight.parameter in by_weight
    }
    return params | changed


def checked(new: Any, config: ModelConfig) -> dict[str, tuple[LogicalTensor, Array | np.ndarray]]:
    """Path -> the tensor that a name stands for, and its new numbers.

    Raises:
        ValueError: for no mapping, an unknown name, a tensor that is named twice, another shape, or no floating-point
            numbers.
    """
    if not isinstance(new, Mapping):
        raise ValueError(f"new weights must be a mapping, {{name: array}}, got a {type(new).__name__}")
    found: dict[str, tuple[LogicalTensor, Array | np.ndarray]] = {}
    names: dict[str, str] = {}
    for name, given in new.items():
        tensor, numbers = find_tensor(name, config), _as_array(name, given)
        if tensor.path in names:
            raise ValueError(f"{names[tensor.path]!r} and {name!r} are names of the same weight: give one of them")
        if numbers.shape != tensor.weight.shape:
            raise ValueError(
                f"{name!r} has the wrong shape: got {list(numbers.shape)}, expected {list(tensor.weight.shape)}"
            )
        if not jnp.issubdtype(numbers.dtype, jnp.floating):
            raise ValueError(f"{name!r} must be floating-point numbers, got {numbers.dtype}: convert them first")
        names[tensor.path], found[tensor.path] = name, (tensor, numbers)
    return found


def _as_array(name: str, given: Any) -> Array | np.ndarray:
    try:
        return given if isinstance(given, jax.Array) else np.asarray(given)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"{name!r} must be an array of numbers, got a {type(given).__name__}: {error}") from error


def _check_rounded(name: str, numbers: Array | np.ndarray, dtype: str) -> None:
    """Raises ValueError for the first number that is finite and, in `dtype`, is not."""
    finite = jnp.isfinite(numbers) if isinstance(numbers, jax.Array) else jnp.asarray(np.isfinite(numbers))
    with np.errstate(over="ignore"):
        lost = jnp.isinf(jnp.asarray(numbers).astype(dtype)) & finite
    if count := int(lost.sum()):
        first = numbers[tuple(int(axis[0]) for axis in jnp.nonzero(lost))]
        raise ValueError(f"{name!r} has {count} numbers that are infinite in {dtype}, the first {first}: scale them")


@partial(jax.jit, static_argnames=("axes", "entries", "parallel"))
def _with_numbers(
    part: Stored, numbers: Array, *, axes: LogicalAxes, entries: tuple[int, ...], parallel: Parallel
) -> Stored:
    """A part of a weight's value with other numbers: all of it, or `entries` of its leading axis.

    axes: what each axis of the numbers is.
    """
    all_of_it = not entries or len(entries) == part.shape[0]
    axes = axes if all_of_it else (None, *axes[1:])
    specs: list[jax.sharding.PartitionSpec] = []

    def note(array: Array, of_array: LogicalAxes) -> Array:
        specs.append(parallel.spec(*(of_array if all_of_it else (None, *of_array[1:]))))
        return array

    part.per_array(note)
    storage = type(part)
    store = parallel.map(lambda own: tuple(jax.tree.leaves(storage.of(own))), parallel.spec(*axes), tuple(specs))
    arrays = iter(store(numbers.astype(part.dtype)))

    def one(old: Array, of_array: LogicalAxes) -> Array:
        array = next(arrays)
        if not all_of_it:
            array = old.at[jnp.array(entries)].set(array)
        return parallel.constrain(array, *of_array)

    return part.per_array(one)


def _places(value: Stored) -> Stored:
    return jax.tree.map(lambda array: array.sharding, value)
