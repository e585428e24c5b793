"""The programs that decoding compiled for a mesh, against the closed forms and the report of where arrays live."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

import moejax
from moejax._sharding import bytes_per_device
from moejax._sharding.collectives import collectives_table, compiled_collectives
from moejax.decoding.state import Features, empty_state
from moejax.families.kv_cache import cache_placements
from moejax.planning.communication import (
    Tokens,
    by_phase,
    choice_collectives,
    forward_collectives,
    report_collectives,
    step_collectives,
)
from moejax.planning.footprint import cache_bytes, weight_bytes


def programs(model: moejax.Model) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Kind -> (key, compiled program); one of each kind was compiled."""
    by_key: dict[Hashable, Any] = model.programs._programs
    found = {key[0]: (key, program) for key, program in by_key.items() if isinstance(key, tuple)}
    assert len(found) == len(by_key)
    return found


def check_collectives(model: moejax.Model) -> str:
    """Compares number, kind, axes, elements and dtype of every collective of prefill and decode step; their table."""
    config, rules, shape = model.config, model.parallel.rules, model.mesh.shape
    dispatch = model.parallel.dispatch
    found = programs(model)
    (_, features, size, *_), step = found["generate"]
    assert features.greedy
    compiled = compiled_collectives(step.as_text(), shape)
    reports = report_collectives(config, rules)
    in_step = by_phase(one for one in compiled if one.in_loop)
    assert Counter(in_step) == Counter(step_collectives(config, rules, dispatch, size, "float32"))
    assert Counter(by_phase(one for one in compiled if not one.in_loop)) == Counter(reports)

    (_, _, fed, *_), extend = found["extend"]
    assert fed.in_place
    compiled = compiled_collectives(extend.as_text(), shape)
    of_prompt = forward_collectives(config, rules, dispatch, Tokens(sequences=fed.prompts, length=fed.width), "float32")
    choice = choice_collectives(rules, Tokens(sequences=fed.prompts, length=1))
    assert Counter(by_phase(compiled)) == Counter([*of_prompt, *choice, *reports])
    return collectives_table(in_step, shape)


def check_memory(model: moejax.Model) -> None:
    """Bytes of the decode step's arguments on one device: weights and cache as reported, and the rest of the state."""
    (_, features, size, length, _), step = programs(model)["generate"]
    weights = bytes_per_device(model.placements())
    cache = bytes_per_device(cache_placements(model.config, model.parallel.rules, size, length, model.dtype))
    rules = model.parallel.rules
    assert weights == weight_bytes(model.config, rules, model.dtype), "what a comparison predicts"
    tables = model.params["placement"].nbytes
    assert cache == cache_bytes(model.config, rules, size, length, model.dtype)
    assert step.memory_analysis().argument_size_in_bytes == (
        weights + cache + tables + small_bytes(model, features, size)
    )


def small_bytes(model: moejax.Model, features: Features, size: int) -> int:
    """Bytes of the decode state without its cache, whole on every device, and of what the host gives each call."""
    state = jax.eval_shape(lambda: empty_state(model.config, features, size, 1, model.dtype, model.parallel))
    small = replace(state, cache=())
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(small)) + size + 2 * np.int32().nbytes
