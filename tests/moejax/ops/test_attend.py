"""What a policy and sinks change in attention, the same in every implementation."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.families.config import AttentionPolicy
from moejax.ops import reference
from moejax.ops.native import library
from moejax.ops.native import ops as native
from moejax.ops.triton.attend import attend as triton_attend
from moejax.ops.xla.attend import attend as xla_attend
from tests.messages import refuses

ATTEND: dict[str, Callable[..., Any]] = {
    "reference": reference.attend,
    "xla": xla_attend,
    "native": native.attend,
    "triton": functools.partial(triton_attend, interpret=True),
}
POLICIES = {
    "scale": AttentionPolicy(scale=0.7),
    "soft cap": AttentionPolicy(soft_cap=1.5),
    "all": AttentionPolicy(window=9, scale=0.4, soft_cap=2.0),
    "plain": AttentionPolicy(),
}
SHAPES = {
    "a step": (2, 2, 3, 1, 16, 300),
    "a step of few positions": (1, 1, 4, 1, 8, 20),
    "a prompt": (2, 2, 3, 33, 16, 64),
}
FLOAT32_ATOL = 5e-6


def exact(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, starts: np.ndarray, policy: AttentionPolicy, sinks: np.ndarray | None
) -> np.ndarray:
    """In float64, one query at a time, as the definition has it."""
    y, (q, k, v) = np.zeros(q.shape), (a.astype(np.float64) for a in (q, k, v))
    for b, head, group, t in np.ndindex(q.shape[:4]):
        last = starts[b] + t + 1
        first = 0 if policy.window is None else max(0, last - policy.window)
        scores = k[b, head, first:last] @ q[b, head, group, t]
        scores = scores / q.shape[-1] ** 0.5 if policy.scale is None else scores * policy.scale
        if policy.soft_cap is not None:
            scores = policy.soft_cap * np.tanh(scores / policy.soft_cap)
        weights = np.exp(scores)
        total = weights.sum() + (0 if sinks is None else np.exp(sinks[head, group]))
        y[b, head, group, t] = weights @ v[b, head, first:last] / total
    return y


@pytest.mark.parametrize("name", ATTEND)
@pytest.mark.parametrize("with_sinks", [False, True], ids=["no sinks", "sinks"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scores_are_scaled_capped_and_beside_sinks(
    shape: tuple[int, ...], policy: AttentionPolicy, with_sinks: bool, name: str
) -> None:
    (b, kv, g, t, h, s), random = shape, np.random.default_rng(shape)
    q, k, v = (random.standard_normal(sizes).astype(np.float32) for sizes in ((b, kv, g, t, h), *[(b, kv, s, h)] * 2))
    starts = random.integers(s // 2 - t, s - t + 1, b).astype(np.int32)
    sinks = 4 + 3 * random.standard_normal((kv, g)).astype(np.float32) if with_sinks else None
    run = jax.jit(functools.partial(ATTEND[name], policy=policy))
    got = run(q, k, v, starts, sinks=sinks)
    wanted = exact(q, k, v, starts, policy, sinks)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=FLOAT32_ATOL)
    if sinks is not None:
        assert float(jnp.abs(got - run(q, k, v, starts)).max()) > 0.01, "sinks count"


@pytest.mark.parametrize("name", ATTEND)
@pytest.mark.parametrize("t", [1, 5])
@pytest.mark.parametrize(("sink", "share"), [(-1e9, 1.0), (-np.inf, 1.0), (1e4, 0.0)])
def test_a_sink_far_from_the_scores(name: str, t: int, sink: float, share: float) -> None:
    """Far below them it changes nothing, far above it takes all."""
    random = np.random.default_rng(t)
    q, k, v = (random.standard_normal(shape).astype(np.float32) for shape in ((1, 1, 2, t, 8), *[(1, 1, 12, 8)] * 2))
    starts, run = np.array([4], np.int32), jax.jit(functools.partial(ATTEND[name], policy=AttentionPolicy()))
    got = run(q, k, v, starts, sinks=np.full((1, 2), sink, np.float32))
    np.testing.assert_allclose(got, share * np.asarray(run(q, k, v, starts)), rtol=0, atol=FLOAT32_ATOL)


def test_gradients_of_blocks_reach_the_sinks() -> None:
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal(shape).astype(np.float32) for shape in ((1, 1, 2, 4, 8), *[(1, 1, 12, 8)] * 2))
    starts, sinks = np.array([4], np.int32), np.array([[0.5, -1.0]], np.float32)

    def loss(attend: Callable[..., Any], sinks: Any) -> Any:
        return (attend(q, k, v, starts, AttentionPolicy(soft_cap=3.0), sinks) ** 2).sum()

    ours, theirs = (jax.grad(functools.partial(loss, ATTEND[name]))(sinks) for name in ("xla", "reference"))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT32_ATOL)
    assert np.abs(ours).min() > 1e-3


@pytest.mark.parametrize("setting", ["window", "scale", "soft_cap"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_policy_of_nothing_is_refused(setting: str, value: Any) -> None:
    with refuses(ValueError, setting, value, "more than 0"):
        AttentionPolicy(**{setting: value})


def test_sinks_of_other_heads_are_refused() -> None:
    assert library.targets()
    q, k = jnp.zeros((1, 2, 3, 1, 8)), jnp.zeros((1, 2, 4, 8))
    with refuses(TypeError, "(3, 2)", "(2, 3)"):
        native.attend(q, k, k, jnp.zeros(1, jnp.int32), AttentionPolicy(), jnp.zeros((3, 2)))
