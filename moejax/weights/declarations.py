"""The arrays of a model: shapes and logical axes of every parameter and of the cache, each declared once. No JAX.

The modules take theirs from here (`param(*declared)`), so what is said of a model without making one cannot differ from
the model; that the paths are those of the modules is checked on random models (test_declarations.py).
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from moejax.families.config import ModelConfig
from sharding import LogicalAxes, Placement, Rules, placement
from sharding.collectives.collective import ITEM_SIZES

WeightLayout = Literal["per_expert", "stacked"]

CACHE_AXES: LogicalAxes = ("batch", "kv_heads", "sequence", "head_dim")
GATE_AXES: LogicalAxes = ("experts", "mlp", "embed")
DOWN_AXES: LogicalAxes = ("experts", "embed", "mlp")


class Declared(NamedTuple):
    """One array: its shape, and what each of its axes is."""

    shape: tuple[int, ...]
    axes: LogicalAxes


def norm_scale(dim: int) -> Declared:
    """Of an RMS norm."""
    return Declared((dim,), ("embed",))


def embedding_table(vocab_size: int, dim: int) -> Declared:
    """Of the embedding, and of the output head."""
    return Declared((vocab_size, dim), ("vocab", "embed"))


def attention_weights(config: ModelConfig) -> Mapping[str, Declared]:
    """Projections q [N H, D], k and v [K H, D], o [D, N H]."""
    d, q, kv = config.embed_dim, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q": Declared((q, d), ("q_heads", "embed")),
        "k": Declared((kv, d), ("kv_heads", "embed")),
        "v": Declared((kv, d), ("kv_heads", "embed")),
        "o": Declared((d, q), ("embed", "q_heads")),
    }


def router_weights(config: ModelConfig) -> Declared:
    """[E, D], whole on every device."""
    return Declared((config.num_experts, config.embed_dim), (None, "embed"))


def expert_weights(config: ModelConfig, stack: int) -> Mapping[str, Declared]:
    """Of `stack` experts: gate and up [stack, F, D], down [stack, D, F]."""
    d, f = config.embed_dim, config.expert_dim
    return {
        "gate": Declared((stack, f, d), GATE_AXES),
        "up": Declared((stack, f, d), GATE_AXES),
        "down": Declared((stack, d, f), DOWN_AXES),
    }


def cached(config: ModelConfig, batch: int, length: int) -> Declared:
    """Keys, or values, of one layer for `batch` rows of `length` tokens."""
    return Declared((batch, config.num_kv_heads, length, config.head_dim), CACHE_AXES)


def layer_params(config: ModelConfig, layout: WeightLayout, peers: int) -> Iterator[tuple[str, Declared]]:
    """Path within a layer and declaration of each of its parameters; `peers` devices split the experts among them."""
    yield "attention_norm.scale", norm_scale(config.embed_dim)
    yield from ((f"attention.{name}", weights) for name, weights in attention_weights(config).items())
    yield "moe_norm.scale", norm_scale(config.embed_dim)
    yield "moe.router", router_weights(config)
    if layout == "stacked":
        stacked = expert_weights(config, config.num_experts)
        yield from ((f"moe.experts.stacked.{name}", weights) for name, weights in stacked.items())
        return
    for slot in range(config.num_experts // peers):
        for name, weights in expert_weights(config, peers).items():
            yield f"moe.experts.slots.{slot}.{name}", weights


def outer_params(config: ModelConfig) -> Iterator[tuple[str, Declared]]:
    """Path and declaration of each parameter that is in no layer."""
    yield "embed.table", embedding_table(config.vocab_size, config.embed_dim)
    yield "final_norm.scale", norm_scale(config.embed_dim)
    if not config.tie_embeddings:
        yield "head.table", embedding_table(config.vocab_size, config.embed_dim)


def model_params(config: ModelConfig, layout: WeightLayout, peers: int) -> dict[str, Declared]:
    """Every parameter of the model by its path."""
    layers = {
        f"layers.{layer}.{path}": declared
        for layer in range(config.num_layers)
        for path, declared in layer_params(config, layout, peers)
    }
    return dict(outer_params(config)) | layers


def declared_placement(path: str, declared: Declared, dtype: str, rules: Rules) -> Placement:
    """Where one array lives.

    Raises:
        ValueError: when an axis does not divide, naming the array, the axis, its size and the mesh.
    """
    return placement(path, declared.shape, dtype, ITEM_SIZES[dtype], declared.axes, rules)


def cache_placements(config: ModelConfig, rules: Rules, batch: int, length: int, dtype: str) -> list[Placement]:
    """Keys and values of every layer, for `batch` rows of `length` tokens.

    Raises:
        ValueError: when the batch does not divide, naming its size and the mesh.
    """
    declared = cached(config, batch, length)
    return [
        declared_placement(f"cache.{layer}.{name}", declared, dtype, rules)
        for layer in range(config.num_layers)
        for name in ("keys", "values")
    ]
