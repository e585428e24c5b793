"""The small layers: RMS norm and token embedding."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, Int

from moejax.model.params import param
from moejax.moe.parallel import Parallel
from moejax.ops.operations import XLA, Operations
from moejax.weights.declarations import embedding_table, norm_scale


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, in float32 (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(
        self, dim: int, eps: float, parallel: Parallel, operations: Operations = XLA, *, dtype: jax.typing.DTypeLike
    ) -> None:
        self.eps, self.parallel, self.operations = eps, parallel, operations
        self.scale = param(*norm_scale(dim), init=jax.nn.initializers.ones, dtype=dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        rows = self.parallel.spec("batch")
        normed = self.parallel.map(partial(self.operations.norm, eps=self.eps), (rows, self.parallel.spec()), rows)
        return normed(x, self.scale[...])


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
