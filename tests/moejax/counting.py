"""Runs a traced function operation by operation and counts what is executed: matrix products, and arrays read.

A loop's trip count and a branch's choice are run-time values, so the traced function alone does not say what one call
costs. Here the operations of one call are executed in turn, with those of a loop as often as it goes round.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import Literal


@dataclass(kw_only=True)
class Counts:
    """What one call executed.

    flops: of all matrix products, two for each multiply-add.  products: matrix products that read each named array.
    rows: rows of the other operand in those products.  read: the named arrays that any operation read.
    """

    flops: int = 0
    products: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    read: set[str] = field(default_factory=set)


def count(function: Callable[..., Any], *args: Any, names: Mapping[str, jax.Array] | None = None) -> Counts:
    """Executes `function(*args)`; `names` are arrays among the leaves of `args` whose use is counted one by one."""
    counts = Counts()
    traced = jax.make_jaxpr(function)(*args)
    name_of = {id(array): name for name, array in (names or {}).items()}
    leaves = jax.tree.leaves(args)
    if missing := set(name_of) - {id(leaf) for leaf in leaves}:
        raise ValueError(f"{len(missing)} named arrays are not among the arguments")
    inputs = [_Value(leaf, name_of.get(id(leaf))) for leaf in leaves]
    _run(traced.jaxpr, [_Value(const) for const in traced.consts], inputs, counts)
    return counts


@dataclass(frozen=True)
class _Value:
    array: Any
    name: str | None = None


def _run(jaxpr: Any, consts: Sequence[_Value], inputs: Sequence[_Value], counts: Counts) -> list[_Value]:
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def value_of(atom: Any) -> _Value:
        return _Value(atom.val) if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        outputs = _execute(eqn, [value_of(atom) for atom in eqn.invars], counts)
        values |= zip(eqn.outvars, outputs, strict=True)
    return [value_of(atom) for atom in jaxpr.outvars]


def _closed(jaxpr: Any, inputs: Sequence[_Value], counts: Counts) -> list[_Value]:
    return _run(jaxpr.jaxpr, [_Value(const) for const in jaxpr.consts], inputs, counts)


def _execute(eqn: Any, inputs: list[_Value], counts: Counts) -> list[_Value]:
    """One operation; those that hold others pass arrays on, every other one reads them."""
    params = eqn.params
    match eqn.primitive.name:
        case "while":
            return _while(params, inputs, counts)
        case "cond":
            return _closed(params["branches"][int(inputs[0].array)], inputs[1:], counts)
        case "scan":
            return _scan(params, inputs, counts)
        case "jit" | "pjit" | "closed_call":
            return _closed(params["jaxpr"], inputs, counts)
        case "custom_jvp_call" | "custom_vjp_call":
            return _closed(params["call_jaxpr"], inputs, counts)
        case "dot_general":
            _count_product(params["dimension_numbers"], inputs, counts)
    if any(hasattr(option, "eqns") or hasattr(option, "jaxpr") for option in params.values()):
        raise NotImplementedError(f"{eqn.primitive.name} holds operations that would not be counted")
    if eqn.primitive.name in ("squeeze", "reshape") and inputs[0].name is not None:  # another view of a named array
        return [_Value(eqn.primitive.bind(inputs[0].array, **eqn.params), inputs[0].name)]
    counts.read |= {value.name for value in inputs if value.name is not None}
    result = eqn.primitive.bind(*(value.array for value in inputs), **params)
    return [_Value(array) for array in (result if eqn.primitive.multiple_results else [result])]


def _while(params: Mapping[str, Any], inputs: list[_Value], counts: Counts) -> list[_Value]:
    conditions, constants = params["cond_nconsts"], params["body_nconsts"]
    condition, body = inputs[:conditions], inputs[conditions : conditions + constants]
    carry = inputs[conditions + constants :]
    while bool(_closed(params["cond_jaxpr"], [*condition, *carry], counts)[0].array):
        carry = _closed(params["body_jaxpr"], [*body, *carry], counts)
    return carry


def _scan(params: Mapping[str, Any], inputs: list[_Value], counts: Counts) -> list[_Value]:
    if "num_consts" in params:
        constants, carried = params["num_consts"], params["num_carry"]
    else:  # from JAX 0.12 on
        constants, carried = (len(part) for part in params["ft_in"].unpack()[:2])
    consts, carry = inputs[:constants], inputs[constants : constants + carried]
    stacks = inputs[constants + carried :]
    collected: list[list[Any]] = []
    for step in range(params["length"]):
        outputs = _closed(params["jaxpr"], [*consts, *carry, *(_Value(one.array[step]) for one in stacks)], counts)
        carry = outputs[:carried]
        collected.append([value.array for value in outputs[carried:]])
    return [*carry, *(_Value(jax.numpy.stack(list(arrays))) for arrays in zip(*collected, strict=True))]


def _count_product(dimension_numbers: Any, inputs: list[_Value], counts: Counts) -> None:
    (contracted, _), (batch, _) = dimension_numbers
    left, right = (value.array.shape for value in inputs)
    shared = math.prod(left[axis] for axis in (*contracted, *batch))
    counts.flops += 2 * math.prod(left) * math.prod(right) // shared
    for value, other in (inputs, inputs[::-1]):
        if value.name is not None:
            counts.products[value.name] += 1
            counts.rows[value.name] += other.array.shape[0]
