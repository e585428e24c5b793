"""The forward pass of a mixture-of-experts decoder (Jiang et al., arXiv:2401.04088), top to bottom.

Dimensions, everywhere: B batch, T query tokens, S cache length, D model width, N query heads, K key/value heads,
H head width, E experts, A experts per token, F expert hidden width, V vocabulary, R = T x A rows, L layers, P places.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from moejax.families.config import ModelConfig
from moejax.families.table import weights_of
from moejax.model.attention import Attention
from moejax.model.cache import KVCache, LayerCache
from moejax.model.layers import DenseMLP, Embedding, RMSNorm
from moejax.model.rotary import Rotation, rotation
from moejax.moe.layer import MoE, Routed
from moejax.moe.parallel import Parallel
from moejax.ops.table import Ops
from moejax.weights.params import Tables, value
from moejax.weights.weight import Weight, under


class Transformer(nnx.Module):
    """A decoder of L layers, each attention and then a feed-forward part, both pre-normed and residual.

    Which layers have experts, biases or further norms follows from the weights that its family declares.
    """

    def __init__(
        self, config: ModelConfig, ops: Ops, parallel: Parallel, *, places: int, dtype: jax.typing.DTypeLike
    ) -> None:
        weights = {weight.parameter: weight for weight in weights_of(config)}
        self.config, self.parallel = config, parallel
        self.embed = Embedding(weights["embed.table"], parallel, ops, multiplied=config.tie_embeddings, dtype=dtype)
        self.layers = nnx.List(
            [
                Layer(config, under(weights, f"layers.{layer}"), ops, parallel, places=places, dtype=dtype)
                for layer in range(config.num_layers)
            ]
        )
        self.final_norm = RMSNorm(weights["final_norm.scale"], config.norm_eps, parallel, ops, dtype=dtype)
        if not config.tie_embeddings:
            self.head = Embedding(weights["head.table"], parallel, ops, multiplied=True, dtype=dtype)
        self.placement = Tables(jax.ShapeDtypeStruct((len(config.moe_layers), 3, places), jnp.int32))

    def __call__(
        self, tokens: Int[Array, "B T"], starts: Int[Array, " B"], lengths: Int[Array, " B"], cache: KVCache
    ) -> tuple[Float[Array, "B T D"], KVCache, Routed]:
        """Feeds T new tokens per sequence, at positions `starts` and on, the first `lengths` of which are real.

        Returns the normed hidden states (for `logits`), the cache with the new tokens in it, and where tokens went.
        """
        steps = jnp.arange(tokens.shape[1])[None, :]
        # Said where they live, small arrays are computed there and nothing is exchanged for them.
        tokens, starts, lengths = self.parallel.constrain((tokens, starts, lengths))
        valid = self.parallel.constrain(steps < lengths[:, None], "groups")
        positions = self.parallel.constrain(starts[:, None] + steps, "batch")
        angles = rotation(positions, self.config.head_dim, self.config.rope_theta)
        tables = iter(value(self.placement))
        with jax.named_scope("embed"):
            x = self.embed.encode(tokens)
        layer_caches, routed, added = [], [], None
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            table = next(tables) if layer.moe is not None else None
            x, added, layer_cache, went = layer(x, added, angles, starts, valid, layer_cache, table)
            layer_caches.append(layer_cache)
            routed += [] if went is None else [went]
        experts, rows = jnp.stack([r.experts for r in routed], axis=2), jnp.stack([r.rows for r in routed], axis=1)
        return self.final_norm(x, added)[1], tuple(layer_caches), Routed(experts, rows)

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Next-token logits of normed hidden states, float32."""
        with jax.named_scope("head"):
            return (self.embed if self.config.tie_embeddings else self.head).logits(hidden)


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + moe(norm(x)), or in a dense layer x + mlp(norm(x)).

    The last of these sums is left to the next norm, which it is computed with.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Weight],
        ops: Ops,
        parallel: Parallel,
        *,
        places: int,
        dtype: jax.typing.DTypeLike,
    ) -> None:
        attention, moe, mlp = (under(weights, name) for name in ("attention", "moe", "mlp"))
        if bool(moe) == bool(mlp):
            declared = "both moe.* and mlp.*" if moe else "neither moe.* nor mlp.*"
            raise ValueError(
                f"a layer of a {config.family} model declares {declared}: it has experts, or one network instead; "
                "what is computed beside experts belongs to moejax/moe/layer.py"
            )
        self.attention_norm = RMSNorm(weights["attention_norm.scale"], config.norm_eps, parallel, ops, dtype=dtype)
        self.attention = Attention(config, attention, parallel, ops, dtype=dtype)
        self.moe_norm = RMSNorm(weights["moe_norm.scale"], config.norm_eps, parallel, ops, dtype=dtype)
        self.moe = MoE(config, moe, ops, parallel, places=places, dtype=dtype) if moe else None
        self.mlp = DenseMLP(mlp, parallel, ops, dtype=dtype) if mlp else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        added: Float[Array, "B T D"] | None,
        angles: Rotation,
        starts: Array,
        valid: Array,
        cache: LayerCache,
        table: Int[Array, "3 P"] | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"], LayerCache, Routed | None]:
        """Of x + added: two arrays that add up to the result, the cache with the new tokens, and where tokens went."""
        with jax.named_scope("attention"):
            x, normed = self.attention_norm(x, added)
            attended, cache = self.attention(normed, angles, starts, cache)
        if self.mlp is not None:
            with jax.named_scope("mlp"):
                x, normed = self.moe_norm(x, attended)
                return x, self.mlp(normed), cache, None
        assert self.moe is not None and table is not None, "a layer has experts where it has no network without"
        with jax.named_scope("moe"):
            x, normed = self.moe_norm(x, attended)
            mixed, routed = self.moe(normed, valid, table)
        return x, mixed, cache, routed
