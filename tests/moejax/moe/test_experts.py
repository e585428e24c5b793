"""Which backend is taken, and the layer around it."""

from dataclasses import replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.families.config import ModelConfig
from moejax.ops.expert import Expert
from moejax.ops.native.packed import Packed
from moejax.ops.table import BACKENDS, BackendName, resolve_backend
from moejax.weights.inputs_first import InputsFirst
from moejax.weights.layouts import Separate
from moejax.weights.params import ParamTree, merge, split
from moejax.weights.placement import PhysicalExperts
from tests.messages import says
from tests.moejax.meshes import made_params, moe_module, on_mesh
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


@pytest.mark.parametrize(("platform", "expected"), [("cpu", "native"), ("gpu", "dense"), ("tpu", "ragged")])
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
    says(str(caught.value), repr(name), known)


def test_every_name_has_a_backend() -> None:
    assert set(BACKENDS) == set(get_args(BackendName))


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_declares_the_parameters(backend: BackendName) -> None:
    """As many parameters whatever the number of experts; as one array of all, or one per expert of a device."""
    for config in (CONFIG, replace(CONFIG, num_experts=64)):
        _, abstract = split(moe_module(config, backend, on_mesh(config), dtype=jnp.float32))
        assert set(abstract) == {"router", "experts.gate", "experts.up", "experts.down"}
        e = config.num_experts
        shapes = {path: variable.get_value().shape for path, variable in abstract.items()}
        assert (shapes["router"], shapes["experts.gate"], shapes["experts.down"]) == ((e, 8), (e, 12, 8), (e, 8, 12))
        gate, arrays = abstract["experts.gate"].get_value(), []
        gate.per_array(lambda array, axes, arrays=arrays: arrays.append((array.shape, axes)))
        if BACKENDS[backend].storage is Packed:
            assert arrays == [((e, 1, 8, 16, 1), ("experts", "mlp", "embed", None, None))]
        elif BACKENDS[backend].storage is InputsFirst:
            assert arrays == [((e, 8, 12), ("experts", "embed", "mlp"))]
        elif BACKENDS[backend].layout == "stacked":
            assert arrays == [((e, 12, 8), ("experts", "mlp", "embed"))]
        else:
            assert arrays == [((1, 12, 8), ("experts", "mlp", "embed"))] * e


def layer_of(params: ParamTree) -> Layer:
    def matrices(value: Any) -> list[Any]:
        return [part.array[0] for part in value.parts] if isinstance(value, Separate) else list(value.numbers())

    by_name = (matrices(params[f"experts.{name}"]) for name in Expert._fields)
    return Layer(experts=[Expert(*one) for one in zip(*by_name, strict=True)])


TABLE = PhysicalExperts.in_order(1, 5, 5).tables()[0]


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize("experts_per_token", [1, 2])
def test_layer_equals_loop(backend: BackendName, experts_per_token: int) -> None:
    """Router and experts together, [B, T, D] with padding: it contributes 0 and is reported as expert E."""
    config = replace(CONFIG, experts_per_token=experts_per_token)
    parallel = on_mesh(config)
    graphdef, abstract = split(moe_module(config, backend, parallel, dtype=jnp.float32))
    params = made_params(abstract, 3, parallel, backend)
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    valid = np.array([[True, True, False], [True, True, True]])
    got, (experts, rows) = jax.jit(lambda params, x, valid: merge(graphdef, abstract, params)(x, valid, TABLE))(
        params, x, valid
    )
    logits = x.reshape(6, 8).astype(np.float64) @ np.asarray(params["router"].numbers()).astype(np.float64).T
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
    graphdef, abstract = split(moe_module(CONFIG, "blocked", parallel, dtype=jnp.bfloat16))
    params = made_params(abstract, 0, parallel, "blocked")
    x, valid = jnp.zeros((2, 3, 8), jnp.bfloat16), jnp.ones((2, 3), bool)
    out, (experts, rows) = jax.eval_shape(lambda x, valid: merge(graphdef, abstract, params)(x, valid, TABLE), x, valid)
    assert out.dtype == jnp.bfloat16 and out.shape == (2, 3, 8)
    assert experts.dtype == jnp.int32 and experts.shape == (2, 3, 2)
    assert rows.dtype == jnp.int32 and rows.shape == (1, 5)
