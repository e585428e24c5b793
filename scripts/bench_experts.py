"""Times one mixture-of-experts layer's experts for every backend over row counts: what `auto` is decided from.

    python scripts/bench_experts.py --shape 1024,3584 --tokens 1,8,32,128,512

Random bfloat16 weights, 8 experts, top-2, uniform routing. Backends run in turn, `--rounds` times, a few calls each;
the table shows the median milliseconds per layer. A program runs several layers one after the other, so that weights
come from memory and not from a cache that a single layer would fit.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moejax.moe.experts import BACKENDS
from moejax.ops.expert import Expert
from moejax.ops.routing import Routing

EXPERTS, CHOSEN = 8, 2
NAMES = [name for name, backend in BACKENDS.items() if backend.cannot() is None]
LAYER_BYTES = 720e6  # weights that one program walks through
CALLS = 3  # timed calls in a row

Layers = list[Expert] | list[list[Expert]]


def main() -> None:
    args = parse_args()
    dim, hidden = args.shape
    print(
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}: D={dim}, F={hidden}, bfloat16"
    )
    print(f"{'tokens':>8s}" + "".join(f"{name:>10s}" for name in NAMES) + "   milliseconds per layer")
    stacked, separate = make_layers(dim, hidden)
    for tokens in args.tokens:
        programs = {name: compile_layers(name, tokens, dim, stacked, separate) for name in NAMES}
        for run in programs.values():
            run()
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(args.rounds):
            for name, run in programs.items():
                run()  # brings caches back to where a decode loop would have them
                began = time.perf_counter()
                for _ in range(CALLS):
                    run()
                seconds[name].append((time.perf_counter() - began) / CALLS)
        cells = (1e3 * statistics.median(times) / len(stacked) for times in seconds.values())
        print(f"{tokens:8d}" + "".join(f"{cell:10.2f}" for cell in cells), flush=True)


def parse_args() -> argparse.Namespace:
    def whole(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=whole, default=[1024, 3584], help="model width and expert width: D,F")
    parser.add_argument("--tokens", type=whole, default=[1, 8, 32, 128, 512], help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def make_layers(dim: int, hidden: int) -> tuple[list[Expert], list[list[Expert]]]:
    """The same layers twice: stacked, and one array per expert."""
    count = max(1, min(16, int(LAYER_BYTES / (EXPERTS * 6 * dim * hidden))))
    rng = np.random.default_rng(0)

    def matrices(*shape: int) -> Array:
        return jnp.asarray(rng.standard_normal((EXPERTS, *shape), np.float32) / shape[-1] ** 0.5, jnp.bfloat16)

    stacked = [Expert(matrices(hidden, dim), matrices(hidden, dim), matrices(dim, hidden)) for _ in range(count)]
    return stacked, [[Expert(*(part[e] for part in layer)) for e in range(EXPERTS)] for layer in stacked]


def compile_layers(
    name: str, tokens: int, dim: int, stacked: list[Expert], separate: list[list[Expert]]
) -> Callable[[], Array]:
    """A call that runs every layer once with backend `name`."""
    backend = next(b for known, b in BACKENDS.items() if known == name)
    layers: Layers = stacked if backend.layout == "stacked" else separate
    rng = np.random.default_rng(tokens)
    experts = np.stack([rng.permutation(EXPERTS)[:CHOSEN] for _ in range(tokens)]).astype(np.int32)
    routing = Routing(jnp.asarray(experts), jnp.full((tokens, CHOSEN), 1 / CHOSEN, jnp.float32))
    x = jnp.asarray(rng.standard_normal((tokens, dim), np.float32), jnp.bfloat16)

    def forward(layers: Layers, x: Array, routing: Routing) -> Array:
        for layer in layers:
            x = x + backend.apply(layer, x, routing).astype(x.dtype)
        return x

    program = jax.jit(forward).lower(layers, x, routing).compile()
    return lambda: program(layers, x, routing).block_until_ready()


if __name__ == "__main__":
    main()
