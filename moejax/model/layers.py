"""The small layers: RMS norm, token embedding, and a feed-forward network without experts."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, Int

from moejax.moe.parallel import Parallel
from moejax.ops.table import Ops
from moejax.weights.params import param, value
from moejax.weights.storage import Rows, Stored
from moejax.weights.weight import Weight


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, in float32 (Zhang and Sennrich, arXiv:1910.07467), of the residual sum."""

    def __init__(self, scale: Weight, eps: float, parallel: Parallel, ops: Ops, *, dtype: jax.typing.DTypeLike) -> None:
        self.eps, self.parallel, self.ops = eps, parallel, ops
        self.scale = param(scale, parallel.rules, dtype=dtype)

    def __call__(
        self, x: Float[Array, "B T D"], added: Float[Array, "B T D"] | None
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
        """x + added (None: x), and its norm."""
        rows, whole = self.parallel.spec("batch"), self.parallel.spec()
        both = self.parallel.map(partial(self.ops.add_norm, eps=self.eps), (rows, rows, whole), (rows, rows))
        return both(x, added, value(self.scale).numbers())


class Embedding(nnx.Module):
    """A table of V vectors: token ids to vectors, and (tied, or as the output head) vectors to logits.

    multiplied: whether there are logits of it; of one that is not, rows are all that is taken.
    """

    def __init__(
        self, table: Weight, parallel: Parallel, ops: Ops, *, multiplied: bool, dtype: jax.typing.DTypeLike
    ) -> None:
        self.parallel, self.ops = parallel, ops
        self.table = param(table, parallel.rules, dtype=dtype, storage=ops.storage if multiplied else Rows)

    def encode(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        axes = self.parallel.axes("vocab")

        def body(table: Stored, tokens: Int[Array, "Bl T"]) -> Float[Array, "Bl T D"]:
            if not axes:
                return table.take(tokens)
            places = tokens - lax.axis_index(axes) * table.shape[0]
            here = ((places >= 0) & (places < table.shape[0]))[..., None]
            return lax.psum(jnp.where(here, table.take(places), jnp.zeros((), table.dtype)), axes)

        table, rows = value(self.table), self.parallel.spec("batch")
        return self.parallel.map(body, (self.parallel.specs(table), rows), rows)(table, tokens)

    def logits(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """The last axis of the result is split as the vocabulary is."""
        table = value(self.table)
        middle: tuple[None, ...] = (None,) * (x.ndim - 2)
        in_specs = (self.parallel.spec("batch"), self.parallel.specs(table))
        out_specs = (self.parallel.spec("batch", *middle, "vocab"),)
        (logits,) = self.parallel.map(self.ops.project, in_specs, out_specs)(x, table)
        return logits


class DenseMLP(nnx.Module):
    """down(silu(gate x) * up x) on every token (SwiGLU, Shazeer, arXiv:2002.05202): a layer without experts.

    Its hidden axis is split as far as the query heads could be; the parts are summed in the activations' dtype.
    """

    def __init__(
        self, weights: Mapping[str, Weight], parallel: Parallel, ops: Ops, *, dtype: jax.typing.DTypeLike
    ) -> None:
        self.parallel, self.ops = parallel, ops
        self.gate, self.up, self.down = (
            param(weights[name], parallel.rules, dtype=dtype, storage=ops.storage) for name in ("gate", "up", "down")
        )

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up, down = (value(one) for one in (self.gate, self.up, self.down))

        def body(x: Float[Array, "Bl T D"], gate: Any, up: Any, down: Any) -> Float[Array, "Bl T D"]:
            gated, upped = self.ops.project(x, gate, up)
            (y,) = self.ops.project((jax.nn.silu(gated) * upped).astype(x.dtype), down, dtype=x.dtype)
            return lax.psum(y, self.parallel.axes("hidden"))

        rows, specs = self.parallel.spec("batch"), self.parallel.specs
        return self.parallel.map(body, (rows, specs(gate), specs(up), specs(down)), rows)(x, gate, up, down)
