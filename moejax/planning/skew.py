"""How evenly tokens choose experts, by name: the table of skews, and the routing that one makes. Imports no JAX."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from moejax.families.config import ModelConfig
from moejax.planning.loads import LARGEST_POWER, Balanced, PowerLaw
from moejax.planning.popularity import CONCENTRATIONS, LARGEST_EXPONENT, Dirichlet, Zipf
from moejax.planning.routing import RoutingModel

UNIFORM = "uniform"
Skew = Balanced | PowerLaw | Zipf | Dirichlet
_NUMBER = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?(?:e[+-]?[0-9]{1,3})?")


@dataclass(frozen=True, kw_only=True)
class Law:
    """A skew with a number behind its colon: what it makes of one, which it takes, and one as an example."""

    make: Callable[[float], Skew]
    takes: str
    example: str


LAWS: Mapping[str, Law] = {
    "power-law": Law(make=PowerLaw, takes=f"above 0 and at most {LARGEST_POWER:g}", example="1.01"),
    "zipf": Law(make=Zipf, takes=f"above 0 and at most {LARGEST_EXPONENT:g}", example="1.0"),
    "dirichlet": Law(make=Dirichlet, takes="between {:g} and {:g}".format(*CONCENTRATIONS), example="0.5"),
}
SAID: Mapping[type, str] = {
    Balanced: "as many rows for every expert",
    PowerLaw: "rows of experts drawn from a power law in every layer",
    Zipf: "shares by Zipf's law, every layer with an order of its own",
    Dirichlet: "shares drawn from a Dirichlet in every layer",
}


def parse_skew(text: object) -> Skew | None:
    """What "uniform", "balanced", "power-law:1.01", "zipf:1.0" or "dirichlet:0.5" names, in any case; None is tokens
    that choose evenly.

    Raises:
        ValueError: for anything else, with the numbers that a law takes.
    """
    name, colon, number = str(text).lower().partition(":")
    if name in LAWS:
        law = LAWS[name]
        if not _NUMBER.fullmatch(number):
            raise ValueError(
                f"skew must be {name} and a number {law.takes}, as in {name}:{law.example}, got {text!r:.80}"
            )
        try:
            return law.make(float(number))
        except ValueError as error:
            raise ValueError(f"skew={text}: {error}") from error
    if name == "balanced" and not colon:
        return Balanced()
    if name != UNIFORM or colon:
        known = ", ".join(f"{name}:{law.example}" for name, law in LAWS.items())
        raise ValueError(f"skew must be uniform, balanced, or a law and a number as in {known}, got {text!r:.80}")
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
