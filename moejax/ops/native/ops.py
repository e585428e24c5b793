"""The kernels as functions of JAX arrays, with the signatures of `ops.reference`, or of what their docstrings name.

Rows do not mix, and a row's result has the same bits whatever rows are beside it and however many.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

from moejax.families.config import AttentionPolicy, RouterPolicy
from moejax.ops.native.library import targets
from moejax.ops.native.packed import Packed
from moejax.ops.routing import Routing
from moejax.runtime.bits import to_bits


def linear(x: Float[Array, "T D"], *weights: Packed) -> tuple[Float[Array, "T O"], ...]:
    """`reference.project` of weights [O, D]: every weight is read once."""
    _check("linear", x, *weights)
    for w in weights:
        if w.shape[1:] != x.shape[1:]:
            raise TypeError(f"linear got rows {x.shape} and weights {w.shape}: their last axes must be equal")
    results = tuple(jax.ShapeDtypeStruct((x.shape[0], w.shape[0]), jnp.float32) for w in weights)
    return tuple(jax.ffi.ffi_call(targets()["linear"], results)(x, *(w.array for w in weights)))


def expert_ffn(
    gate: Packed,
    up: Packed,
    down: Packed,
    x: Float[Array, "T D"],
    experts: Int[Array, "T A"],
    weights: Float[Array, "T A"],
) -> Float[Array, "T D"]:
    """`reference.expert_ffn` of gate and up [E, F, D], down [E, D, F]: only chosen experts' are read, each once.

    An id below 0 or above E ends the program with an error.
    """
    _check("expert_ffn", x, gate, up, down)
    (e, hidden), d = gate.shape[:2], x.shape[1]
    shapes = (gate.shape, up.shape, down.shape)
    if shapes != ((e, hidden, d), (e, hidden, d), (e, d, hidden)):
        raise TypeError(f"expert_ffn got gate, up and down {shapes}, expected [E, F, {d}] twice and [E, {d}, F]")
    if experts.shape != weights.shape or experts.shape[:1] != x.shape[:1]:
        raise TypeError(f"expert_ffn got ids {experts.shape} and weights {weights.shape} for {x.shape[0]} tokens")
    results = (
        jax.ShapeDtypeStruct(x.shape, jnp.float32),
        jax.ShapeDtypeStruct((experts.size, hidden), x.dtype),
        jax.ShapeDtypeStruct((experts.size, d), jnp.float32),
    )
    call = jax.ffi.ffi_call(targets()["experts"], results)
    return call(x, experts.astype(jnp.int32), weights.astype(jnp.float32), gate.array, up.array, down.array)[0]


def attend(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    starts: Int[Array, " B"],
    policy: AttentionPolicy,
    sinks: Float[Array, "K G"] | None = None,
) -> Float[Array, "B K G T H"]:
    """`reference.attend`: positions that no query sees are not read."""
    _check("attend", q, k, v)
    if k.shape != v.shape or (*k.shape[:2], k.shape[3]) != (*q.shape[:2], q.shape[4]) or starts.shape != q.shape[:1]:
        raise TypeError(f"attend got q {q.shape}, k {k.shape}, v {v.shape} and starts {starts.shape}")
    if sinks is not None and sinks.shape != q.shape[1:3]:
        raise TypeError(f"attend got sinks {sinks.shape} for q {q.shape}, expected one per head, {q.shape[1:3]}")
    call = jax.ffi.ffi_call(targets()["attend"], jax.ShapeDtypeStruct(q.shape, jnp.float32))
    # A cache holds bits: XLA then hands on the cache and copies nothing.
    return call(
        q,
        *(to_bits(a, a.dtype.name) for a in (k, v)),
        starts.astype(jnp.int32),
        jnp.zeros((0, 0), jnp.float32) if sinks is None else sinks.astype(jnp.float32),
        window=np.int64(policy.window or 0),
        scale=np.float32(policy.scale_of(q.shape[-1])),
        soft_cap=np.float32(policy.soft_cap or 0.0),
    )


def zeros(*results: jax.ShapeDtypeStruct) -> tuple[Array, ...]:
    """`reference.zeros`, in huge pages where the system gives them; one call, so that no two are one array to XLA."""
    return tuple(jax.ffi.ffi_call(targets()["zeros"], results)())


READ_BLOCK = 2**16  # kReadBlock of read.h


def read_memory(numbers: Float[Array, " N"]) -> Float[Array, " blocks"]:
    """The sums of blocks of `READ_BLOCK` float32 numbers, to measure how fast all threads read."""
    if numbers.dtype != jnp.float32:
        raise TypeError(f"read_memory got {numbers.dtype}, expected float32")
    blocks = jax.ShapeDtypeStruct((-(-numbers.size // READ_BLOCK),), jnp.float32)
    return jax.ffi.ffi_call(targets()["read"], blocks)(numbers)


def rms_norm(x: Float[Array, "T D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "T D"]:
    """`reference.norm`."""
    _check("rms_norm", x, scale)
    if scale.shape != x.shape[1:]:
        raise TypeError(f"rms_norm got rows {x.shape} and a scale {scale.shape}: their last axes must be equal")
    call = jax.ffi.ffi_call(targets()["norm"], jax.ShapeDtypeStruct(x.shape, x.dtype))
    return call(x, scale, eps=np.float32(eps))


def route(logits: Float[Array, "T E"], valid: Bool[Array, " T"], policy: RouterPolicy) -> Routing:
    """`reference.route`."""
    chosen = policy.experts_per_token
    if logits.dtype != jnp.float32 or valid.shape != logits.shape[:1] or not 0 < chosen <= logits.shape[1]:
        raise TypeError(f"route got logits {logits.dtype} {logits.shape}, valid {valid.shape} and {chosen} per token")
    shape = (logits.shape[0], chosen)
    results = (jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32))
    call = jax.ffi.ffi_call(targets()["route"], results)
    return Routing(*call(logits, valid, renormalise=policy.renormalise, scale=np.float32(policy.scale)))


def rotate_into_cache(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    cos: Float[Array, "B T H/2"],
    sin: Float[Array, "B T H/2"],
    starts: Int[Array, " B"],
    k_cache: Shaped[Array, "B K S H"],
    v_cache: Shaped[Array, "B K S H"],
    dtype: str,
) -> tuple[Float[Array, "B N T H"], Shaped[Array, "B K S H"], Shaped[Array, "B K S H"]]:
    """`xla.rotate.rotate_into_cache`, for caches of `dtype` that hold 16 bits as uint16. They are written in place."""
    b, t, n, h = q.shape
    cached = (b, k.shape[2], k_cache.shape[2], h)
    if k.shape != v.shape or k_cache.shape != cached or v_cache.shape != cached or cos.shape != (b, t, h // 2):
        raise TypeError(
            f"rotate_into_cache got q {q.shape}, k {k.shape}, v {v.shape}, angles {cos.shape} and caches "
            f"{k_cache.shape}, {v_cache.shape}"
        )
    if h % 2 or t > k_cache.shape[2]:
        raise ValueError(f"rotate_into_cache got {t} tokens of width {h} for {k_cache.shape[2]} positions")
    results = (
        jax.ShapeDtypeStruct((b, n, t, h), jnp.dtype(dtype)),
        jax.ShapeDtypeStruct(cached, k_cache.dtype),
        jax.ShapeDtypeStruct(cached, v_cache.dtype),
    )
    call = jax.ffi.ffi_call(targets()["rotate"], results, input_output_aliases={6: 1, 7: 2})
    floats = (a.astype(jnp.float32) for a in (q, k, v, cos, sin))
    rotated, keys, values = call(*floats, starts.astype(jnp.int32), k_cache, v_cache)
    return rotated, keys, values


def _check(name: str, *arrays: Array | Packed) -> None:
    if unpacked := [type(w).__name__ for w in arrays if not isinstance(w, Packed | Array)]:
        raise TypeError(f"{name} got a weight that is {unpacked[0]}: the kernels multiply Packed ones")
    dtypes = {str(array.dtype) for array in arrays}
    if len(dtypes) > 1 or not dtypes <= {"float32", "float16", "bfloat16"}:
        raise TypeError(f"{name} got {', '.join(sorted(dtypes))}: all must be one of float32, float16, bfloat16")
