"""How often each expert was chosen while real prompts were decoded. Imports no JAX."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExpertLoad:
    """Rows that each expert of each layer computed.

    model: the name it was recorded from.  tokens: fed to the model, of prompts and outputs.
    counts: [L][E]; every layer's add up to tokens x experts_per_token.
    """

    model: str
    num_layers: int
    num_experts: int
    experts_per_token: int
    tokens: int
    counts: tuple[tuple[int, ...], ...]
