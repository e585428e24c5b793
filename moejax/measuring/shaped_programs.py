"""The functions of decoding with the shapes and places of their arguments: all that compiling them takes."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moejax._sharding import LogicalAxis
from moejax.decoding import steps
from moejax.decoding.shapes import FeedShape
from moejax.decoding.state import DecodeState, Features, empty_state
from moejax.families.kv_cache import CACHE_AXES
from moejax.model.cache import KVCache
from moejax.model.structure import Structure
from moejax.moe.parallel import Parallel


class Program(NamedTuple):
    """A function and the shapes and places of its arguments: weights first, then `others`, which hold `cache`.

    unread: those of `others` that it does not read; jit leaves them out of the program.
    """

    function: Callable[..., Any]
    weights: dict[str, Any]
    others: tuple[Any, ...]
    cache: KVCache
    donated: tuple[int, ...]
    unread: tuple[Any, ...] = ()


def lower(program: Program) -> jax.stages.Lowered:
    """The program, traced and lowered for the devices that its arguments live on."""
    return jax.jit(program.function, donate_argnums=program.donated).lower(program.weights, *program.others)


def decode_step(structure: Structure, features: Features, sequences: int, positions: int) -> Program:
    """The loop that generates a token for each of `sequences` per turn, as `decoding.slots` calls it.

    positions: of the cache of each.
    """
    parallel = structure.parallel
    state = _abstract_state(structure, features, sequences, positions)
    count = _whole((), jnp.int32, parallel)
    return Program(
        function=lambda params, *args: steps.generate(structure.merged(params), features, *args),
        weights=structure.shapes(),
        others=(state, _whole((sequences,), jnp.bool_, parallel), count, count),
        cache=state.cache,
        donated=(1,),
    )


def feed(structure: Structure, features: Features, shape: FeedShape, sequences: int, positions: int) -> Program:
    """The feeding of a part of each of some prompts, as `decoding.slots` calls it.

    sequences, positions: slots of the state, and positions of the cache of each.
    """
    parallel = structure.parallel
    state = _abstract_state(structure, features, sequences, positions)
    filled = _abstract_state(structure, features, shape.outputs, positions)
    tokens: Any = _whole((shape.prompts, shape.width), jnp.int32, parallel)
    numbers: Any = _whole((shape.prompts,), jnp.int32, parallel)
    outputs: Any = _whole((shape.outputs,), jnp.int32, parallel)
    in_prompt: Any = _whole(filled.in_prompt.shape, jnp.bool_, parallel)
    fed = steps.Feed(
        tokens=tokens,
        next_tokens=tokens,
        starts=numbers,
        lengths=numbers,
        sources=numbers,
        fed=outputs,
        slots=outputs,
        in_prompt=in_prompt,
        sampling=filled.sampling,
    )
    # What only log-probabilities of prompts need, and prompts that are not fed in place.
    unread = (*(() if shape.logprobs is not None else (tokens,)), *((numbers,) if shape.in_place else ()))
    return Program(
        function=lambda params, *args: steps.extend(structure.merged(params), features, shape, *args),
        weights=structure.shapes(),
        others=(state, fed),
        cache=state.cache,
        donated=(1,),
        unread=unread,
    )


def _abstract_state(structure: Structure, features: Features, sequences: int, positions: int) -> DecodeState:
    """The shapes of the state of a batch, where they live."""
    config, parallel = structure.config, structure.parallel
    state = jax.eval_shape(lambda: empty_state(config, features, sequences, positions, structure.dtype, parallel))
    cache = _placed(state.cache, parallel, *CACHE_AXES)
    return dataclasses.replace(_placed(dataclasses.replace(state, cache=()), parallel), cache=cache)


def _placed(tree: Any, parallel: Parallel, *logical: LogicalAxis | None) -> Any:
    """The same shapes, living where arrays with these logical axes do; without any, whole on every device."""
    sharding = parallel.sharding(*logical)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _whole(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, parallel: Parallel) -> jax.ShapeDtypeStruct:
    return _placed(jax.ShapeDtypeStruct(shape, dtype), parallel)
