"""How evenly tokens choose experts, by name: the table of skews, and the routing that one makes. Imports no JAX."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from moejax.families.config import ModelConfig
from moejax.planning.loads import Balanced, PowerLaw
from moejax.planning.popularity import Dirichlet, Zipf
from moejax.planning.routing import RoutingModel

UNIFORM = "uniform"
Skew = Balanced | PowerLaw | Zipf | Dirichlet
_NUMBER = r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)"

# By name: what it makes of the number behind its colon, and one as an example.
NUMBERED: Mapping[str, tuple[Callable[[float], Skew], str]] = {
    "power-law": (PowerLaw, "1.01"),
    "zipf": (Zipf, "1.0"),
    "dirichlet": (Dirichlet, "0.5"),
}
SAID: Mapping[type, str] = {
    Balanced: "as many rows for every expert",
    PowerLaw: "rows of experts drawn from a power law in every layer",
    Zipf: "shares by Zipf's law, every layer with an order of its own",
    Dirichlet: "shares drawn from a Dirichlet in every layer",
}


def parse_skew(text: object) -> Skew | None:
    """What "uniform", "balanced", "power-law:1.01", "zipf:1.0" or "dirichlet:0.5" names; None is tokens that choose
    evenly.

    Raises:
        ValueError: for anything else.
    """
    text = text.lower() if isinstance(text, str) else text
    for name, (make, _) in NUMBERED.items():
        if found := re.fullmatch(rf"{name}:{_NUMBER}", str(text)):
            try:
                return make(float(found[1]))
            except ValueError as error:
                raise ValueError(f"skew {text!r}: {error}") from error
    if text == "balanced":
        return Balanced()
    if text != UNIFORM:
        known = ", ".join(f"{name}:{example}" for name, (_, example) in NUMBERED.items())
        raise ValueError(f"skew must be uniform, balanced, or a law and a number as in {known}, got {text!r}")
    return None


def skewed_routing(config: ModelConfig, skew: str) -> RoutingModel:
    """Routing of a model under a skew.

    Raises:
        ValueError: as `parse_skew`.
    """
    even, found = RoutingModel(config.num_experts, config.experts_per_token), parse_skew(skew)
    if isinstance(found, Zipf | Dirichlet):
        layers = max(1, len(config.moe_layers))
        return replace(even, shares=found.shares(layers, config.num_experts, config.experts_per_token))
    return replace(even, load=found)


def skew_said(skew: str) -> str | None:
    """How tokens choose, in a line; None where they choose evenly."""
    found = parse_skew(skew)
    return None if found is None else f"experts: {skew}, {SAID[type(found)]}"
