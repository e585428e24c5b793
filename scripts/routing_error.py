"""The standard error of sampled routing: how far results of other seeds lie apart, in percent of the result.

python scripts/routing_error.py; docs/performance-model.md has what it printed.
"""

import statistics
from collections.abc import Sequence

from moejax.planning.models import expert_shares, model_config
from moejax.planning.popularity import Dirichlet, Zipf
from moejax.planning.routing import RoutingModel, Shares

MODELS = ((8, 1), (8, 2), (64, 6), (128, 8), (256, 2), (256, 8))  # experts, experts per token
PARTS, TOKENS = (2, 4, 8, 64, 256), (1, 2, 4, 8, 16, 32, 64, 128, 129, 200, 512, 4096, 65_536)
SEEDS = range(8)
LAWS, LAYERS = {"zipf:1.0": Zipf(1.0), "dirichlet:0.5": Dirichlet(0.5)}, 32


def standard_error(
    num_experts: int, experts_per_token: int, shares: tuple[Shares, ...] | None, quantity: str
) -> tuple[float, int, int]:
    """The largest relative standard deviation over seeds, of any parts and tokens, and those parts and tokens."""
    found: dict[tuple[int, int], list[float]] = {}
    for seed in SEEDS:  # outside: what one seed draws is kept
        model = RoutingModel(num_experts, experts_per_token, shares, seed)
        for tokens in TOKENS:
            for parts in filter(lambda parts: parts <= num_experts, PARTS):
                found.setdefault((parts, tokens), []).append(getattr(model, quantity)(parts, tokens))
    errors = {place: statistics.stdev(values) / statistics.mean(values) for place, values in found.items()}
    worst = max(errors, key=lambda place: errors[place])
    return errors[worst], *worst


def main(models: Sequence[tuple[int, int]] = MODELS) -> None:
    """Prints a table in Markdown."""
    demo = model_config("demo")
    recorded = ("demo's recorded load", demo.num_experts, demo.experts_per_token, expert_shares("demo", demo))
    laws = [(f"8 experts, 2 per token, {name}", 8, 2, law.shares(LAYERS, 8, 2)) for name, law in LAWS.items()]
    cases = [*((f"{e} experts, {a} per token", e, a, None) for e, a in models), *laws, recorded]
    print("| routing | quantity | largest standard error | at |\n|---|---|---|---|")
    for name, experts, per_token, shares in cases:
        for quantity in ("experts_read", "busiest_rows"):
            error, parts, tokens = standard_error(experts, per_token, shares, quantity)
            print(f"| {name} | {quantity} | {error:.2%} | {parts} devices, {tokens:,} tokens |")


if __name__ == "__main__":
    main()
