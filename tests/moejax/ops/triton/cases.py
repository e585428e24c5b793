"""What the kernels are tried on: routings with everything unpleasant in them, and both ways of running a kernel.

`interpreted` runs a kernel on a CPU as the GPU would, one program after the other; jitted, so that examples of one
shape share a compilation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moejax.ops.kernels import KERNELS
from moejax.ops.reference import Routes

# Results of order 1 from float32 sums of at most about 100 products, each rounded to 6e-8 of itself.
FLOAT32_ATOL = 1e-5

REFERENCE = KERNELS["reference"]


@functools.cache
def interpreted(kernel: str, *static: int):
    """The kernel of that name in interpret mode; `static` are its last arguments."""
    function = getattr(KERNELS["interpret"], kernel)
    return jax.jit(lambda *args: function(*args, *static))


@st.composite
def routings(draw: st.DrawFn, t: int, e: int, a: int) -> Routes:
    """Ties, experts that many or all tokens prefer, experts that nobody chooses, tokens routed to none."""
    logits = draw(arrays(np.int8, (t, e), elements=st.integers(-3, 3))).astype(np.float32)
    logits[:, draw(st.lists(st.integers(0, e - 1), max_size=2 * a))] += 10
    valid = draw(st.just(np.ones(t, bool)) | arrays(bool, (t,)))
    return REFERENCE.route(jnp.asarray(logits), jnp.asarray(valid), a)


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> jax.Array:
    """Normal numbers; matrices keep the scale of what they multiply."""
    values = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return jnp.asarray(values * (shape[-1] ** -0.5 if len(shape) == 3 else 1.0), dtype)


def poisoned(weights: tuple[jax.Array, ...], counts: jax.Array) -> tuple[jax.Array, ...]:
    """The weights with NaN in every expert that nobody chose."""
    return tuple(jnp.where((counts == 0)[:, None, None], jnp.nan, w) for w in weights)
