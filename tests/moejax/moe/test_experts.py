"""Which backend is taken, and the layer around it."""

from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.families.config import ModelConfig
from moejax.model.params import ParamTree, merge, split
from moejax.moe.experts import BACKENDS, BackendName, resolve_backend
from moejax.moe.layer import MoE
from moejax.ops.expert import Expert
from tests.moejax.meshes import made_params, on_mesh
from tests.moejax.moe.oracle import Layer, moe_loop, route_loop
from tests.moejax.ops.runnable import RUNNABLE

CONFIG = ModelConfig(
    vocab_size=16,
    embed_dim=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    num_experts=5,
    experts_per_token=2,
    expert_dim=12,
    max_position_embeddings=32,
)
FLOAT32_ATOL = 3e-6  # as in test_backends.py


@pytest.mark.parametrize(("platform", "expected"), [("cpu", "native"), ("gpu", "dense"), ("tpu", "dense")])
def test_auto_follows_the_platform(platform: str, expected: str) -> None:
    assert resolve_backend("auto", platform) == expected


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("name", ["dense", "blocked", "ragged"])  # tests/moejax/ops/triton has the others
def test_an_explicit_name_is_taken(name: str, platform: str) -> None:
    assert resolve_backend(name, platform) == name


@pytest.mark.parametrize("name", ["triton", "Blocked", "", "stacked"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolve_backend(name, "cpu")
    known = "auto, dense, blocked, native, ragged, pallas, tokamax"
    assert str(caught.value) == f"unknown expert backend {name!r}; the known ones are {known}"


def test_every_name_has_a_backend() -> None:
    assert set(BACKENDS) == set(get_args(BackendName))


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_declares_the_parameters(backend: BackendName) -> None:
    """The same weights, as an array of all experts or one per expert that a device holds."""
    _, abstract = split(MoE(CONFIG, backend, on_mesh(CONFIG), dtype=jnp.float32))
    shapes = {path: variable.get_value().shape for path, variable in abstract.items()}
    axes = {path: variable.get_metadata("out_sharding") for path, variable in abstract.items()}
    assert shapes.pop("router") == (5, 8)
    if BACKENDS[backend].layout == "stacked":
        assert shapes == {
            "experts.stacked.gate": (5, 12, 8),
            "experts.stacked.up": (5, 12, 8),
            "experts.stacked.down": (5, 8, 12),
        }
        assert axes["experts.stacked.gate"] == ("experts", "mlp", "embed")
        assert axes["experts.stacked.down"] == ("experts", "embed", "mlp")
    else:
        assert len(shapes) == 3 * 5
        assert {shapes[f"experts.slots.{e}.gate"] for e in range(5)} == {(1, 12, 8)}
        assert {shapes[f"experts.slots.{e}.down"] for e in range(5)} == {(1, 8, 12)}
        assert axes["experts.slots.0.up"] == ("experts", "mlp", "embed")


def layer_of(params: ParamTree) -> Layer:
    if "experts.stacked.gate" in params:
        return Layer(experts=[Expert(*(params[f"experts.stacked.{m}"][e] for m in Expert._fields)) for e in range(5)])
    return Layer(experts=[Expert(*(params[f"experts.slots.{e}.{m}"][0] for m in Expert._fields)) for e in range(5)])


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize("experts_per_token", [1, 2])
def test_layer_equals_loop(backend: BackendName, experts_per_token: int) -> None:
    """Router and experts together, [B, T, D] with padding: it contributes 0 and is reported as expert E."""
    config = replace(CONFIG, experts_per_token=experts_per_token)
    parallel = on_mesh(config)
    graphdef, abstract = split(MoE(config, backend, parallel, dtype=jnp.float32))
    params = made_params(abstract, config, 3, parallel)
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    valid = np.array([[True, True, False], [True, True, True]])
    got, (experts, rows) = jax.jit(lambda params, x, valid: merge(graphdef, abstract, params)(x, valid))(
        params, x, valid
    )
    logits = x.reshape(6, 8).astype(np.float64) @ np.asarray(params["router"]).astype(np.float64).T
    routing = route_loop(logits, valid.reshape(-1), experts_per_token)
    np.testing.assert_array_equal(experts, np.asarray(routing.experts).reshape(2, 3, -1))
    assert (np.asarray(experts)[0, 2] == 5).all()
    expected = moe_loop(layer_of(params), x.reshape(6, 8), routing).reshape(2, 3, 8)
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_ATOL)
    np.testing.assert_array_equal(got[0, 2], np.zeros(8))
    counts = np.bincount(np.asarray(routing.experts).reshape(-1), minlength=6)[:5]
    np.testing.assert_array_equal(rows, counts[None])


def test_output_has_the_dtype_of_the_input() -> None:
    parallel = on_mesh(CONFIG)
    graphdef, abstract = split(MoE(CONFIG, "blocked", parallel, dtype=jnp.bfloat16))
    params = made_params(abstract, CONFIG, 0, parallel)
    x, valid = jnp.zeros((2, 3, 8), jnp.bfloat16), jnp.ones((2, 3), bool)
    out, (experts, rows) = jax.eval_shape(lambda x, valid: merge(graphdef, abstract, params)(x, valid), x, valid)
    assert out.dtype == jnp.bfloat16 and out.shape == (2, 3, 8)
    assert experts.dtype == jnp.int32 and experts.shape == (2, 3, 2)
    assert rows.dtype == jnp.int32 and rows.shape == (1, 5)
