"""The backends around the kernels, interpreted: prefill, decode, and inside `shard_map` on local experts.

`tokamax` is among them where its package is installed, by its path for XLA.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from moejax._sharding import MeshConfig
from moejax.families.config import ModelConfig
from moejax.model.cache import empty_cache
from moejax.model.structure import Structure, make_structure
from moejax.moe.parallel import Parallel
from moejax.ops.expert import Expert
from moejax.ops.reference import route
from moejax.ops.routing import Routing
from moejax.ops.table import BACKENDS, BackendName, make_ops
from moejax.ops.triton.experts import pallas, pallas_route
from moejax.ops.triton.few_tokens import MOST_TOKENS
from moejax.ops.triton.kernels import KERNELS
from moejax.reading import random_params
from moejax.runtime.platform import H100, tracing_for
from tests.moejax.meshes import on_mesh
from tests.moejax.moe.oracle import plain
from tests.moejax.ops.runnable import KERNEL_BACKENDS
from tests.moejax.ops.triton.cases import FLOAT32_ATOL, normal, top
from tests.moejax.ops.triton.lowering import abstract, abstract_mesh, lower

E, A, D, F = 4, 2, 8, 12
EXPERTS = Expert(plain(normal(E, F, D)), plain(normal(E, F, D, seed=1)), plain(normal(E, D, F)))


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
@pytest.mark.parametrize("t", [MOST_TOKENS, MOST_TOKENS + 1])
@pytest.mark.parametrize("ranked", [True, False])
def test_equals_dense_around_the_crossover(backend: BackendName, t: int, ranked: bool) -> None:
    """With the ranks and counts that the router knows, and without, as a dispatch leaves them."""
    routing = pallas_route(normal(t, E), jnp.arange(t) % 7 > 0, top(A))
    if not ranked:
        routing = Routing(routing.experts, routing.weights)
    x = normal(t, D)
    got = jax.jit(BACKENDS[backend].apply)(EXPERTS, x, routing)
    expected = BACKENDS["dense"].apply(EXPERTS, x, routing)
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_ATOL)


def test_same_bits_every_time() -> None:
    """Sums have one order: no atomics."""
    t = MOST_TOKENS + 1
    x, routing = normal(t, D), pallas_route(normal(t, E), jnp.ones(t, bool), top(A))
    run = jax.jit(pallas)
    np.testing.assert_array_equal(run(EXPERTS, x, routing), run(EXPERTS, x, routing))


def test_route_of_the_backend_is_the_routers() -> None:
    logits, valid = normal(9, E), jnp.arange(9) != 4
    got, expected = (
        pallas_route(logits, valid, top(A)),
        route(logits, valid, top(A)),
    )
    np.testing.assert_array_equal(got.experts, expected.experts)
    np.testing.assert_allclose(got.weights, expected.weights, rtol=0, atol=FLOAT32_ATOL)
    assert got.ranks is not None and got.counts is not None and expected.ranks is None
    assert make_ops("pallas").route is pallas_route and make_ops("dense").route is route


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
@pytest.mark.parametrize("most", [MOST_TOKENS, 2], ids=["decode kernels", "prefill by grouped products"])
def test_a_whole_model_has_the_logits_of_dense(
    backend: BackendName, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefill and a decode step, padding included: two layers, the cache between them."""
    config = ModelConfig(
        vocab_size=16,
        embed_dim=D,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        num_experts=E,
        experts_per_token=A,
        expert_dim=F,
        max_position_embeddings=32,
    )
    parallel, results = on_mesh(config), []
    for name in ("interpret", "interpret_tokamax"):
        monkeypatch.setitem(KERNELS, name, replace(KERNELS[name], most_tokens=most))
    for name in (backend, "dense"):
        structure = interpretable_structure(config, name, parallel)
        params = random_params(structure, 0)

        def run(params, tokens, lengths, structure=structure):
            model = structure.merged(params)
            cache = empty_cache(config, 2, 8, "float32", parallel)
            hidden, cache, _ = model(tokens, jnp.zeros_like(lengths), lengths, cache)
            step, _, routed = model(tokens[:, :1], lengths, jnp.ones_like(lengths), cache)
            return model.logits(hidden), model.logits(step), routed

        results.append(jax.jit(run)(params, jnp.arange(8).reshape(2, 4), jnp.asarray([4, 2], jnp.int32)))
    (prefill, step, routed), (dense_prefill, dense_step, dense_routed) = results
    np.testing.assert_allclose(prefill, dense_prefill, rtol=0, atol=FLOAT32_ATOL)
    np.testing.assert_allclose(step, dense_step, rtol=0, atol=FLOAT32_ATOL)
    np.testing.assert_array_equal(routed.experts, dense_routed.experts)
    np.testing.assert_array_equal(routed.rows, dense_routed.rows)


def interpretable_structure(config: ModelConfig, backend: BackendName, parallel: Parallel) -> Structure:
    """Of a backend that loading would refuse here: on a CPU its kernels are only interpreted."""
    with tracing_for(H100):
        return make_structure(config, backend, "float32", parallel)


def local_layer(experts: Expert, x: jax.Array, logits: jax.Array) -> jax.Array:
    """Experts sharded over `expert` [El, F, D], tokens and logits replicated; the result is summed over the axis."""
    routing = pallas_route(logits, jnp.ones(x.shape[0], bool), top(A))
    local = experts.gate.array.shape[0]
    first = jax.lax.axis_index("expert") * local
    mine = (routing.experts >= first) & (routing.experts < first + local)
    here = Routing(jnp.where(mine, routing.experts - first, local), jnp.where(mine, routing.weights, 0.0))
    return jax.lax.psum(pallas(experts, x, here), "expert")


@pytest.mark.parametrize("t", [1, 3])
def test_inside_shard_map(t: int) -> None:
    """One device here, so one shard; interpretation needs check_vma=False, a real kernel does not."""
    mesh = jax.make_mesh((1,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (PartitionSpec("expert"), PartitionSpec(), PartitionSpec())
    x, logits = normal(t, D), normal(t, E)
    run = jax.shard_map(local_layer, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    expected = BACKENDS["dense"].apply(EXPERTS, x, route(logits, jnp.ones(t, bool), top(A)))
    np.testing.assert_allclose(jax.jit(run)(EXPERTS, x, logits), expected, rtol=0, atol=FLOAT32_ATOL)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("t", [1, 3, MOST_TOKENS + 1])
def test_lowers_inside_shard_map_on_local_experts(t: int, check_vma: bool) -> None:
    """Two of four experts on each of two devices, which only exist in name."""
    mesh = abstract_mesh(H100, MeshConfig(expert=2))
    specs = (PartitionSpec("expert"), PartitionSpec(), PartitionSpec())
    run = jax.shard_map(local_layer, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check_vma)
    lowered = lower(run, *abstract((EXPERTS, normal(t, D), normal(t, E))), device=H100)
    names = [kernel.name for kernel in lowered.kernels]
    assert names[0] == "route" and names[-1] in ("one_token_down", "combine")
    assert ("rank_rows" in names) == (t > MOST_TOKENS)
