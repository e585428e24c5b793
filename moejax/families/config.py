"""What a model is: its sizes and constants. Imports no JAX.

The letters in brackets are the dimension key used in shapes everywhere else.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moejax._convert.errors import shown

# Far beyond what is built (61 layers of 384 experts), and little enough for a table with a row for each.
MOST_LAYERS, MOST_EXPERTS, MOST_SIZE = 1000, 30_000, 2**31


@dataclass(frozen=True, kw_only=True)
class RouterPolicy:
    """How a router turns logits into experts and their weights; every implementation of `route` is given it.

    experts_per_token: how many of the E experts a token reaches, the most probable ones (softmax over all of them).
    renormalise: whether the weights of the chosen experts are divided by their sum.
    scale: what they are multiplied by in the end.
    """

    experts_per_token: int
    renormalise: bool = True
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class AttentionPolicy:
    """How attention turns queries and keys into weights; every implementation of `attend` is given it.

    window: how many positions a query sees, its own and those before it; None: all of them.
    scale: what the products of queries and keys are multiplied by; None: head_dim^-0.5.
    soft_cap: scores s become soft_cap tanh(s / soft_cap) (Gemma 2, arXiv:2408.00118, section 2); None: stay s.
    """

    window: int | None = None
    scale: float | None = None
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        for name in ("window", "scale", "soft_cap"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"attention has {name} {value}, expected more than 0, or None")

    def scale_of(self, head_dim: int) -> float:
        """What products of heads of that width are multiplied by."""
        return head_dim**-0.5 if self.scale is None else self.scale


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and constants of a mixture-of-experts decoder.

    family: its row in `FAMILIES`, which knows its weights and their names.
    dense_layers: layers with one feed-forward network of `dense_dim` in place of a router and experts.

    Raises:
        ValueError: when the sizes cannot belong to one model.
    """

    vocab_size: int  # V
    embed_dim: int  # D
    num_layers: int  # L
    num_heads: int  # N, query heads
    num_kv_heads: int  # K
    head_dim: int  # H
    num_experts: int  # E
    experts_per_token: int  # A
    expert_dim: int  # F
    max_position_embeddings: int
    rope_theta: float = 1e6
    norm_eps: float = 1e-5
    sliding_window: int | None = None  # tokens a query sees, itself included; None: all of them
    tie_embeddings: bool = False
    family: str = "mixtral"
    renormalise: bool = True
    router_scale: float = 1.0
    dense_layers: tuple[int, ...] = ()
    dense_dim: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dense_layers", tuple(self.dense_layers))  # JSON has lists
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if problem := config_problem(values, {name: name for name in values}):
            raise ValueError(f"config: {problem}")
        if self.sliding_window is not None and self.sliding_window >= self.max_position_embeddings:
            object.__setattr__(self, "sliding_window", None)  # it hides nothing

    @property
    def router(self) -> RouterPolicy:
        """How its routers choose."""
        return RouterPolicy(
            experts_per_token=self.experts_per_token, renormalise=self.renormalise, scale=self.router_scale
        )

    @property
    def attention(self) -> AttentionPolicy:
        """How its queries attend."""
        return AttentionPolicy(window=self.sliding_window)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers that have a router and experts."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.dense_layers)


def config_problem(values: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    """Why `values` of ModelConfig's fields belong to no model, calling the fields what their reader does; else None."""
    for field in dataclasses.fields(ModelConfig):
        if field.type is int and not is_positive_int(value := values[field.name]):
            return f"{names[field.name]} must be a positive whole number, got {value!r}"
    if problem := _too_large(values, names):
        return problem
    heads, kv_heads = values["num_heads"], values["num_kv_heads"]
    if heads % kv_heads:
        return f"{names['num_heads']} must be a multiple of {names['num_kv_heads']}, got {heads} and {kv_heads}"
    if values["head_dim"] % 2:
        return f"{names['head_dim']} must be even for rotary embeddings, got {values['head_dim']}"
    if values["experts_per_token"] > values["num_experts"]:
        return (
            f"{names['experts_per_token']} must be at most {names['num_experts']}, got {values['experts_per_token']} "
            f"and {values['num_experts']}"
        )
    if (window := values["sliding_window"]) is not None and not is_positive_int(window):
        return f"{names['sliding_window']} must be null or a positive number, got {window!r}"
    if not isinstance(tied := values["tie_embeddings"], bool):
        return f"{names['tie_embeddings']} must be true or false, got {tied!r}"
    for name in ("rope_theta", "norm_eps"):
        value = values[name]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e30:
            return f"{names[name]} must be a positive number, got {value!r:.80}"
    if (dense := values.get("dense_layers", ())) and not is_positive_int(values.get("dense_dim")):
        return f"dense_dim must be a positive whole number where layers {list(dense)} are dense"
    return None


def _too_large(values: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    """Which size no model has. It comes before anything is built whose size they are."""
    for field in dataclasses.fields(ModelConfig):
        if field.type is int and values[field.name] >= MOST_SIZE:
            return f"{names[field.name]} must be below 2^31, got {shown(values[field.name])}"
    layers, experts = values["num_layers"], values["num_experts"]
    if layers > MOST_LAYERS:
        return f"{names['num_layers']} must be at most {MOST_LAYERS}, got {layers}"
    if layers * experts > MOST_EXPERTS:
        return (
            f"{names['num_layers']} x {names['num_experts']} must be at most {MOST_EXPERTS}, got {layers} x {experts}"
        )
    return None


def is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def sequence_limit(max_seq_len: int | None, config: ModelConfig) -> int:
    """Most tokens of prompt and output together: `max_seq_len`, or None for as many as the model has positions.

    Raises:
        ValueError: for a limit that leaves no room, or is more than the model has.
    """
    most = config.max_position_embeddings
    if max_seq_len is None:
        return most
    if not isinstance(max_seq_len, int) or isinstance(max_seq_len, bool) or not 2 <= max_seq_len <= most:
        raise ValueError(
            f"max_seq_len must be from 2 to {most} (the model's max_position_embeddings), got {max_seq_len!r}"
        )
    return max_seq_len
