"""`generate` for some rows of a state: a step over rows that do not generate costs as much as one over rows that do.

Shapes: B rows of the state with S cache slots each, b of them at work on the first R slots; Bl and bl on one device.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int

from moejax.decoding.state import DecodeState, Features, place_state
from moejax.decoding.steps import Generated, generate
from moejax.model.cache import KVCache, take_rows
from moejax.model.model import Mixtral
from moejax.moe.parallel import Parallel
from moejax.runtime.buckets import STEPS_PER_CALL
from moejax.weights.declarations import CACHE_AXES


def generate_some(
    model: Mixtral,
    features: Features,
    slots: int,
    state: DecodeState,
    rows: Int[Array, " b"],
    idle: Bool[Array, " b"],
    steps: Int[Array, ""],
) -> tuple[DecodeState, Generated]:
    """Up to `steps` tokens for each of `rows` that is active and not `idle`; the outputs are in the order of `rows`.

    The rows are distinct; where the batch is split over a mesh, each part has as many of them, in the order of parts.
    Active ones have to stay within the first `slots` slots of the cache. They are worked on in a state of their own:
    what a call costs beside its steps is a copy of those slots, and of the new ones back.
    """
    few = _take(model.parallel, state, rows, slots)
    working = few.active & ~idle
    after, generated = generate(model, features, few, idle, steps)
    return _put(model.parallel, state, after, rows, few.position, working), generated


def _take(parallel: Parallel, state: DecodeState, rows: Int[Array, " b"], slots: int) -> DecodeState:
    """Those rows as a state of their own, with `slots` cache slots each."""

    def take(cache: KVCache, rows: Int[Array, " bl"]) -> KVCache:
        return take_rows(cache, rows % cache[0].k.shape[0], slots)

    def take_seen(seen: Any, rows: Int[Array, " bl"]) -> Any:
        return jax.tree.map(lambda counts: counts[rows % counts.shape[0]], seen)

    cached, split = parallel.spec(*CACHE_AXES), parallel.spec("batch")
    cache = parallel.map(take, (cached, split), cached)(state.cache, rows)
    in_prompt, in_output = parallel.map(take_seen, split, split)((state.in_prompt, state.in_output), rows)
    few = jax.tree.map(lambda leaf: leaf[rows], _per_row(state))
    return place_state(dataclasses.replace(few, cache=cache, in_prompt=in_prompt, in_output=in_output), parallel)


def _put(
    parallel: Parallel,
    state: DecodeState,
    few: DecodeState,
    rows: Int[Array, " b"],
    starts: Int[Array, " b"],
    working: Bool[Array, " b"],
) -> DecodeState:
    """The state with those rows as they are now, of whose cache the slots from `starts` on are new where `working`."""
    cached, split = parallel.spec(*CACHE_AXES), parallel.spec("batch")
    put = parallel.map(_put_slots, (cached, cached, split, split, split), cached)
    put_counts = parallel.map(_put_counts, (split, split, split), split)
    merged = jax.tree.map(lambda old, new: old.at[rows].set(new), _per_row(state), _per_row(few))
    return place_state(
        dataclasses.replace(
            merged,
            cache=put(state.cache, few.cache, rows, starts, working),
            in_prompt=state.in_prompt,
            in_output=put_counts(state.in_output, few.in_output, rows),
        ),
        parallel,
    )


def _put_slots(
    cache: KVCache, few: KVCache, rows: Int[Array, " bl"], starts: Int[Array, " bl"], working: Bool[Array, " bl"]
) -> KVCache:
    """On one device: the slots that one call can have written, of each row that worked.

    The others keep theirs: a step writes for them too, at a position that may lie past the end of the short cache.
    """
    count = few[0].k.shape[2]
    width = min(STEPS_PER_CALL, count)
    starts = jnp.clip(starts, 0, count - width)

    def put_row(i: Array, cache: KVCache) -> KVCache:
        def put(into: Array, new: Array) -> Array:
            shape, target = (1, new.shape[1], width, new.shape[3]), (rows[i] % into.shape[0], 0, starts[i], 0)
            window = lax.dynamic_slice(new, (i, 0, starts[i], 0), shape)
            old = lax.dynamic_slice(into, target, shape)
            return lax.dynamic_update_slice(into, jnp.where(working[i], window, old), target)

        return jax.tree.map(put, cache, few)

    return lax.fori_loop(0, rows.shape[0], put_row, cache)


def _put_counts(all_: Int[Array, "Bl V"], few: Int[Array, "bl V"], rows: Int[Array, " bl"]) -> Int[Array, "Bl V"]:
    def put_row(i: Array, all_: Array) -> Array:
        return lax.dynamic_update_slice(all_, lax.dynamic_slice_in_dim(few, i, 1), (rows[i] % all_.shape[0], 0))

    return lax.fori_loop(0, rows.shape[0], put_row, all_)


def _per_row(state: DecodeState) -> DecodeState:
    """What is one number, or a few, per row: whole on every device."""
    return dataclasses.replace(state, cache=(), in_prompt=None, in_output=None)
