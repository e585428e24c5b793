"""`generate` for some slots of a state: stepping slots that do not generate costs as much as stepping those that do.

Shapes: B slots of the state with S cache positions each, b of them at work on the first R; Bl and bl on one device.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int

from moejax.decoding.outputs import Generated
from moejax.decoding.state import DecodeState, Features, place_state
from moejax.decoding.steps import generate
from moejax.families.kv_cache import CACHE_AXES
from moejax.model.cache import KVCache, take_sequences
from moejax.model.model import Transformer
from moejax.moe.parallel import Parallel
from moejax.runtime.buckets import STEPS_PER_CALL


def generate_some(
    model: Transformer,
    features: Features,
    positions: int,
    state: DecodeState,
    slots: Int[Array, " b"],
    idle: Bool[Array, " b"],
    steps: Int[Array, ""],
    least: Int[Array, ""],
) -> tuple[DecodeState, Generated]:
    """`generate` for each of `slots` that is active and not `idle`; the outputs are in the order of `slots`.

    The slots are distinct; where the batch is split over a mesh, each part has as many of them, in the order of parts.
    Active sequences have to stay within the first `positions` positions of the cache. They are worked on in a state of
    their own: what a call costs beside its steps is a copy of those positions, and of the new ones back.
    """
    few = _take(model.parallel, state, slots, positions)
    working = few.active & ~idle
    after, generated = generate(model, features, few, idle, steps, least)
    return _put(model.parallel, state, after, slots, few.position, working), generated


def _take(parallel: Parallel, state: DecodeState, slots: Int[Array, " b"], positions: int) -> DecodeState:
    """Those slots as a state of their own, with `positions` cache positions each."""

    def take(cache: KVCache, slots: Int[Array, " bl"]) -> KVCache:
        return take_sequences(cache, slots % cache[0].k.shape[0], positions)

    def take_seen(seen: Any, slots: Int[Array, " bl"]) -> Any:
        return jax.tree.map(lambda counts: counts[slots % counts.shape[0]], seen)

    cached, split = parallel.spec(*CACHE_AXES), parallel.spec("batch")
    cache = parallel.map(take, (cached, split), cached)(state.cache, slots)
    in_prompt, in_output = parallel.map(take_seen, split, split)((state.in_prompt, state.in_output), slots)
    few = jax.tree.map(lambda leaf: leaf[slots], _per_slot(state))
    return place_state(dataclasses.replace(few, cache=cache, in_prompt=in_prompt, in_output=in_output), parallel)


def _put(
    parallel: Parallel,
    state: DecodeState,
    few: DecodeState,
    slots: Int[Array, " b"],
    starts: Int[Array, " b"],
    working: Bool[Array, " b"],
) -> DecodeState:
    """The state with those slots as they are now; their cache is new from `starts` on where they were `working`."""
    cached, split = parallel.spec(*CACHE_AXES), parallel.spec("batch")
    put = parallel.map(_put_positions, (cached, cached, split, split, split), cached)
    put_counts = parallel.map(_put_counts, (split, split, split), split)
    merged = jax.tree.map(lambda old, new: old.at[slots].set(new), _per_slot(state), _per_slot(few))
    return place_state(
        dataclasses.replace(
            merged,
            cache=put(state.cache, few.cache, slots, starts, working),
            in_prompt=state.in_prompt,
            in_output=put_counts(state.in_output, few.in_output, slots),
        ),
        parallel,
    )


def _put_positions(
    cache: KVCache, few: KVCache, slots: Int[Array, " bl"], starts: Int[Array, " bl"], working: Bool[Array, " bl"]
) -> KVCache:
    """On one device: the positions that one call can have written, of each slot that worked.

    The others keep theirs: a step writes for them too, at a position that may lie past the end of the short cache.
    """
    count = few[0].k.shape[2]
    width = min(STEPS_PER_CALL, count)
    starts = jnp.clip(starts, 0, count - width)

    def put_slot(i: Array, cache: KVCache) -> KVCache:
        def put(into: Array, new: Array) -> Array:
            shape, target = (1, new.shape[1], width, new.shape[3]), (slots[i] % into.shape[0], 0, starts[i], 0)
            window = lax.dynamic_slice(new, (i, 0, starts[i], 0), shape)
            old = lax.dynamic_slice(into, target, shape)
            return lax.dynamic_update_slice(into, jnp.where(working[i], window, old), target)

        return jax.tree.map(put, cache, few)

    return lax.fori_loop(0, slots.shape[0], put_slot, cache)


def _put_counts(all_: Int[Array, "Bl V"], few: Int[Array, "bl V"], slots: Int[Array, " bl"]) -> Int[Array, "Bl V"]:
    def put_slot(i: Array, all_: Array) -> Array:
        return lax.dynamic_update_slice(all_, lax.dynamic_slice_in_dim(few, i, 1), (slots[i] % all_.shape[0], 0))

    return lax.fori_loop(0, slots.shape[0], put_slot, all_)


def _per_slot(state: DecodeState) -> DecodeState:
    """What is one number, or a few, per slot: whole on every device."""
    return dataclasses.replace(state, cache=(), in_prompt=None, in_output=None)
