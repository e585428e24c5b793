"""Times one mixture-of-experts layer's experts for every backend over row counts: what `auto` is decided from.

    python -m scripts.bench_experts --shape 1024,3584 --tokens 1,8,32,128,512

Random bfloat16 weights, 8 experts, top-2, uniform routing. Backends run in turn, `--rounds` times, a few calls each;
the table shows the median milliseconds per layer. A program runs several layers one after the other, so that weights
come from memory and not from a cache that a single layer would fit.
"""

import argparse
import dataclasses
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from moejax.families.table import named_config
from moejax.ops.expert import Expert
from moejax.ops.table import BACKENDS, prepare_backend
from moejax.runtime.platform import current_device
from moejax.weights.layouts import LayoutName, Separate
from moejax.weights.storage import Stored
from scripts.kernel_timing import compiled, normal, random_layers, random_routing, walk

EXPERTS, CHOSEN = 8, 2
NAMES = [name for name, backend in BACKENDS.items() if backend.cannot(current_device()) is None]
LAYER_BYTES = 720e6  # weights that one program walks through
CALLS = 3  # timed calls in a row


def main() -> None:
    args = parse_args()
    dim, hidden = args.shape
    print(
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}: D={dim}, F={hidden}, bfloat16"
    )
    print(f"{'tokens':>8s}" + "".join(f"{name:>10s}" for name in NAMES) + "   milliseconds per layer")
    prepare_backend("auto", jax.default_backend())
    sizes = {"embed_dim": dim, "expert_dim": hidden, "num_experts": EXPERTS, "experts_per_token": CHOSEN}
    config = dataclasses.replace(named_config("mixtral-8x7b"), **sizes)
    plain = random_layers(config, max(1, min(16, int(LAYER_BYTES / (EXPERTS * 6 * dim * hidden)))))
    layers = {
        (backend.layout, backend.storage): [laid_out(layer, backend.layout, backend.storage) for layer in plain]
        for name, backend in BACKENDS.items()
        if name in NAMES
    }
    for tokens in args.tokens:
        given = normal(tokens, dim), random_routing(config, tokens)
        programs = {
            name: compiled(walk(backend.apply), layers[backend.layout, backend.storage], *given)
            for name, backend in BACKENDS.items()
            if name in NAMES
        }
        for run in programs.values():
            jax.block_until_ready(run())
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(args.rounds):
            for name, run in programs.items():
                jax.block_until_ready(run())  # brings caches back to where a decode loop would have them
                began = time.perf_counter()
                for _ in range(CALLS):
                    jax.block_until_ready(run())
                seconds[name].append((time.perf_counter() - began) / CALLS)
        cells = (1e3 * statistics.median(times) / len(plain) for times in seconds.values())
        print(f"{tokens:8d}" + "".join(f"{cell:10.2f}" for cell in cells), flush=True)


def parse_args() -> argparse.Namespace:
    def whole(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=whole, default=[1024, 3584], help="model width and expert width: D,F")
    parser.add_argument("--tokens", type=whole, default=[1, 8, 32, 128, 512], help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def laid_out(layer: Expert, layout: LayoutName, storage: type[Stored]) -> Expert:
    """The same weights as a backend wants them."""

    def one(value: Any) -> Any:
        if layout == "stacked":
            return storage.of(value.numbers())
        return Separate(parts=tuple(storage.of(one) for one in jnp.split(value.numbers(), EXPERTS)))

    return Expert(*map(one, layer))


if __name__ == "__main__":
    main()
