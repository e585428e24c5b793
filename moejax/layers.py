"""The small layers: RMS norm, rotary embeddings, token embedding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, Int

from moejax.declarations import embedding_table, norm_scale
from moejax.operations import XLA, Operations
from moejax.parallel import Parallel
from moejax.params import param


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, in float32 (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float, *, dtype: jax.typing.DTypeLike) -> None:
        self.eps = eps
        self.scale = param(*norm_scale(dim), init=jax.nn.initializers.ones, dtype=dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x32 = x.astype(jnp.float32)
        inverse_rms = lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        return (x32 * inverse_rms * scale[None, None, :]).astype(x.dtype)


class Rotation(NamedTuple):
    """Cosine and sine of the rotary angles of every position, float32 [B, T, H / 2]."""

    cos: Float[Array, "B T H/2"]
    sin: Float[Array, "B T H/2"]


def rotation(positions: Int[Array, "B T"], head_dim: int, theta: float) -> Rotation:
    """Rotary angles (Su et al., arXiv:2104.09864): position times theta^(-2i/H)."""
    frequencies = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None, :]
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "B T N H"], angles: Rotation) -> Float[Array, "B T N H"]:
    """Rotates the pairs (i, i + H/2) of every head; the result is float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = angles.cos[:, :, None, :], angles.sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Embedding(nnx.Module):
    """A table of V vectors: token ids to vectors, and (tied, or as the output head) vectors to logits."""

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        parallel: Parallel,
        operations: Operations = XLA,
        *,
        dtype: jax.typing.DTypeLike,
    ) -> None:
        self.parallel, self.operations = parallel, operations
        init = jax.nn.initializers.normal(dim**-0.5)
        self.table = param(*embedding_table(vocab_size, dim), init=init, dtype=dtype)

    def encode(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        axes = self.parallel.axes("vocab")

        def body(table: Float[Array, "Vl D"], tokens: Int[Array, "Bl T"]) -> Float[Array, "Bl T D"]:
            if not axes:
                return table.at[tokens].get(mode="clip")
            places = tokens - lax.axis_index(axes) * table.shape[0]
            here = ((places >= 0) & (places < table.shape[0]))[..., None]
            return lax.psum(jnp.where(here, table.at[places].get(mode="clip"), jnp.zeros((), table.dtype)), axes)

        rows = self.parallel.spec("batch")
        return self.parallel.map(body, (self.parallel.spec("vocab"), rows), rows)(self.table[...], tokens)

    def logits(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """The last axis of the result is split as the vocabulary is."""
        middle: tuple[None, ...] = (None,) * (x.ndim - 2)
        in_specs = (self.parallel.spec("batch"), self.parallel.spec("vocab"))
        out_specs = (self.parallel.spec("batch", *middle, "vocab"),)
        (logits,) = self.parallel.map(self.operations.project, in_specs, out_specs)(x, self.table[...])
        return logits
