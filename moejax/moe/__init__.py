"""The mixture-of-experts layer: router, dispatches, experts, and how one device computes its experts."""

from moejax.moe.experts import BACKENDS, Experts, resolve_backend
from moejax.moe.layer import MoE, Routed
from moejax.moe.router import Routing, route

__all__ = ["BACKENDS", "Experts", "MoE", "Routed", "Routing", "resolve_backend", "route"]
