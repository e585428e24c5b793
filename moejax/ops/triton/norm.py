"""The residual sum and its RMS norm in one launch: `reference.add_norm`."""

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jaxtyping import Float

from moejax.ops.triton.launch import Out, launch, load, power_of_two, store, within

VALUES_PER_WARP = 512  # 16 for each of its threads


def add_norm(
    x: Float[Array, "T D"],
    added: Float[Array, "T D"] | None,
    scale: Float[Array, " D"],
    *,
    eps: float,
    interpret: bool = False,
) -> tuple[Float[Array, "T D"], Float[Array, "T D"]]:
    """As there. Programs: rows."""
    t, d = x.shape
    width = power_of_two(d)
    if t == 0:
        return x, x

    def norm(x_ref, scale_ref, *refs):
        *added_ref, sum_ref, y_ref = refs
        row, columns = pl.program_id(0), jnp.arange(width)
        mask = within(columns, d, width)
        total = load(x_ref, (row, columns), mask)
        if added_ref:
            total = total + load(added_ref[0], (row, columns), mask)
        values = total.astype(jnp.float32)
        inverse_rms = lax.rsqrt((values * values).sum() / d + eps)
        normed = values * inverse_rms * load(scale_ref, (columns,), mask).astype(jnp.float32)
        store(sum_ref, (row, columns), total, mask)
        store(y_ref, (row, columns), normed.astype(y_ref.dtype), mask)

    total, y = launch(
        norm,
        "add_norm",
        (t,),
        (Out(x.shape, x.dtype), Out(x.shape, x.dtype)),
        (x, scale) if added is None else (x, scale, added),
        warps=max(1, min(16, width // VALUES_PER_WARP)),
        interpret=interpret,
    )
    return (x if added is None else total), y
