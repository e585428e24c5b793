"""Mixtral's forward pass (Jiang et al., arXiv:2401.04088), top to bottom.

Dimensions, everywhere: B batch, T query tokens, S cache length, D model width, N query heads, K key/value heads,
H head width, E experts, A experts per token, F expert hidden width, V vocabulary, R = T x A rows, L layers.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from moejax.families.config import ModelConfig
from moejax.model.attention import Attention
from moejax.model.cache import KVCache, LayerCache
from moejax.model.layers import Embedding, RMSNorm
from moejax.model.rotary import Rotation, rotation
from moejax.moe.experts import BACKENDS, BackendName
from moejax.moe.layer import MoE, Routed
from moejax.moe.parallel import Parallel


class Mixtral(nnx.Module):
    """A decoder of L layers, each attention and then a mixture of experts, both pre-normed and residual."""

    def __init__(
        self, config: ModelConfig, backend: BackendName, parallel: Parallel, *, dtype: jax.typing.DTypeLike
    ) -> None:
        self.config, self.parallel = config, parallel
        operations = BACKENDS[backend].operations
        self.embed = Embedding(config.vocab_size, config.embed_dim, parallel, operations, dtype=dtype)
        self.layers = nnx.List([Layer(config, backend, parallel, dtype=dtype) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(config.embed_dim, config.norm_eps, parallel, operations, dtype=dtype)
        if not config.tie_embeddings:
            self.head = Embedding(config.vocab_size, config.embed_dim, parallel, operations, dtype=dtype)

    def __call__(
        self, tokens: Int[Array, "B T"], starts: Int[Array, " B"], lengths: Int[Array, " B"], cache: KVCache
    ) -> tuple[Float[Array, "B T D"], KVCache, Routed]:
        """Feeds T new tokens per row, at positions `starts` and on, the first `lengths` of which are real.

        Returns the normed hidden states (for `logits`), the cache with the new tokens in it, and where tokens went.
        """
        steps = jnp.arange(tokens.shape[1])[None, :]
        # Said where they live, small arrays are computed there and nothing is exchanged for them.
        tokens, starts, lengths = self.parallel.constrain((tokens, starts, lengths))
        valid = self.parallel.constrain(steps < lengths[:, None], "groups")
        positions = self.parallel.constrain(starts[:, None] + steps, "batch")
        angles = rotation(positions, self.config.head_dim, self.config.rope_theta)
        with jax.named_scope("embed"):
            x = self.embed.encode(tokens)
        layer_caches, experts, rows = [], [], []
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x, layer_cache, routed = layer(x, angles, starts, valid, layer_cache)
            layer_caches.append(layer_cache)
            experts.append(routed.experts)
            rows.append(routed.rows)
        return self.final_norm(x), tuple(layer_caches), Routed(jnp.stack(experts, axis=2), jnp.stack(rows, axis=1))

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Next-token logits of normed hidden states, float32."""
        with jax.named_scope("head"):
            return (self.embed if self.config.tie_embeddings else self.head).logits(hidden)


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + moe(norm(x))."""

    def __init__(
        self, config: ModelConfig, backend: BackendName, parallel: Parallel, *, dtype: jax.typing.DTypeLike
    ) -> None:
        operations = BACKENDS[backend].operations
        self.attention_norm = RMSNorm(config.embed_dim, config.norm_eps, parallel, operations, dtype=dtype)
        self.attention = Attention(config, parallel, operations, dtype=dtype)
        self.moe_norm = RMSNorm(config.embed_dim, config.norm_eps, parallel, operations, dtype=dtype)
        self.moe = MoE(config, backend, parallel, dtype=dtype)

    def __call__(
        self, x: Float[Array, "B T D"], angles: Rotation, starts: Array, valid: Array, cache: LayerCache
    ) -> tuple[Float[Array, "B T D"], LayerCache, Routed]:
        with jax.named_scope("attention"):
            attended, cache = self.attention(self.attention_norm(x), angles, starts, cache)
        x = x + attended
        with jax.named_scope("moe"):
            mixed, routed = self.moe(self.moe_norm(x), valid)
        return x + mixed, cache, routed
