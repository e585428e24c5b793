"""The programs of a case, lowered for devices that need not be there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moejax._sharding import MeshConfig
from moejax._sharding.collectives import Collective
from moejax.compiling.cases import Case, ProgramName
from moejax.decoding.shapes import FeedShape
from moejax.decoding.state import Features
from moejax.families.table import weights_of
from moejax.measuring.shaped_programs import Program, decode_step, feed, lower
from moejax.model.structure import Structure, make_parallel, make_structure
from moejax.moe.layer import MoE
from moejax.moe.split import FEWEST_ROWS, dispatch_name
from moejax.ops.table import make_ops, resolve_backend
from moejax.planning.communication import (
    Tokens,
    choice_collectives,
    forward_collectives,
    moe_collectives,
    report_collectives,
    step_collectives,
)
from moejax.planning.overlap import divided
from moejax.runtime.platform import Device, tracing_for
from moejax.serving.limits import served_features
from moejax.weights.params import merge, split
from moejax.weights.weight import under

GREEDY = Features()


def lower_case(case: Case, device: Device, devices: list[Any]) -> tuple[jax.stages.Lowered, Structure]:
    """A case's program, lowered for `devices`, of the kind `device`."""
    mesh: Mesh = MeshConfig.parse(case.mesh).build(devices)
    with tracing_for(device):
        backend = resolve_backend(case.backend, device.platform)
        parallel = make_parallel(case.config, mesh, case.dispatch, micro_batches=case.micro_batches)
        structure = make_structure(case.config, backend, case.dtype, parallel)
        return _LOWERED[case.program](case, structure), structure


def predicted_collectives(case: Case, structure: Structure) -> list[Collective] | None:
    """What the closed forms say of a case; None where there is none: they know greedy choices alone."""
    whole = _of_whole_calls(case, structure)
    if whole is None or case.micro_batches == 1:
        return whole
    rows = case.batch // structure.parallel.rules.parts("batch") * case.width
    return divided(whole, max(1, min(case.micro_batches, rows // FEWEST_ROWS)))


def _of_whole_calls(case: Case, structure: Structure) -> list[Collective] | None:
    config, rules = case.config, structure.parallel.rules
    dispatch = dispatch_name(case.dispatch)
    if case.program == "decode":
        found = step_collectives(config, rules, dispatch, case.batch, case.dtype)
        return found + report_collectives(config, rules)
    if case.program == "prefill":
        fed = Tokens(sequences=case.batch, length=case.width)
        found = forward_collectives(config, rules, dispatch, fed, case.dtype) + report_collectives(config, rules)
        return found + choice_collectives(rules, Tokens(sequences=case.batch, length=1))
    if case.program == "layer":
        return moe_collectives(config, rules, dispatch, Tokens(sequences=case.batch, length=1), case.dtype)
    return None


def _decode(case: Case, structure: Structure) -> jax.stages.Lowered:
    return _named(case, decode_step(structure, GREEDY, case.batch, case.positions))


def _prefill(case: Case, structure: Structure) -> jax.stages.Lowered:
    shape = FeedShape(case.batch, case.width, case.positions, case.batch, in_place=True)
    return _named(case, feed(structure, GREEDY, shape, case.batch, case.positions))


def _serve_step(case: Case, structure: Structure) -> jax.stages.Lowered:
    sampled = served_features(case.config.vocab_size)[1]
    return _named(case, decode_step(structure, sampled, case.batch, case.positions))


def _serve_feed(case: Case, structure: Structure) -> jax.stages.Lowered:
    fewest = structure.parallel.rules.parts("batch")
    shape = FeedShape(fewest, case.width, case.positions, fewest)
    features = served_features(case.config.vocab_size)[-1]
    return _named(case, feed(structure, features, shape, case.batch, case.positions))


def _layer(case: Case, structure: Structure) -> jax.stages.Lowered:
    config, parallel = case.config, structure.parallel
    layer = config.moe_layers[0]
    weights = under({weight.parameter: weight for weight in weights_of(config)}, f"layers.{layer}.moe")
    places, ops = structure.experts.num_places, make_ops(structure.backend)
    graphdef, declared = split(MoE(config, weights, ops, parallel, places=places, dtype=jnp.dtype(case.dtype)))
    prefix = f"layers.{layer}.moe."
    shapes = {path.removeprefix(prefix): one for path, one in structure.shapes().items() if path.startswith(prefix)}
    own, whole = parallel.sharding("batch"), parallel.sharding()
    x = jax.ShapeDtypeStruct((case.batch, 1, config.embed_dim), jnp.dtype(case.dtype), sharding=own)
    valid = jax.ShapeDtypeStruct((case.batch, 1), jnp.bool_, sharding=whole)  # as what is one per slot is
    table = jax.ShapeDtypeStruct((3, places), jnp.int32, sharding=whole)

    def moe(params: Any, *args: Any) -> Any:
        with jax.named_scope("moe"):
            return merge(graphdef, declared, params)(*args)

    moe.__name__ = _name(case)
    return jax.jit(moe).lower(shapes, x, valid, table)


def _named(case: Case, program: Program) -> jax.stages.Lowered:
    """Lowered under a name that XLA's dumps are found by."""
    function = program.function

    def named(*args: Any) -> Any:
        return function(*args)

    named.__name__ = _name(case)
    return lower(program._replace(function=named))


def _name(case: Case) -> str:
    return case.program.replace("-", "_")


_LOWERED: dict[ProgramName, Callable[[Case, Structure], jax.stages.Lowered]] = {
    "decode": _decode,
    "prefill": _prefill,
    "serve-step": _serve_step,
    "serve-feed": _serve_feed,
    "layer": _layer,
}
