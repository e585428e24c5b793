"""The mixture-of-experts layer as loops over tokens in float64 numpy: what every backend is compared with."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from moejax.ops.expert import Expert
from moejax.ops.routing import Routing
from moejax.weights.layouts import Separate
from moejax.weights.storage import Plain, Stored


def plain(array: jnp.ndarray) -> Plain:
    """A weight's value that holds these numbers, whole on every device."""
    return Plain(array=array, axes=(None,) * array.ndim)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Matrices of E experts, each gate and up [F, D] and down [D, F]."""

    experts: list[Expert]

    @property
    def stacked(self) -> Expert:
        """The same weights with a leading axis E."""
        return Expert(*(jnp.stack(matrices) for matrices in zip(*self.experts, strict=True)))

    def laid_out(self, layout: str, storage: type[Stored] = Plain) -> Expert:
        """The values of weights that a backend with this layout and storage is given on one device."""
        if layout == "stacked":
            return Expert(*map(storage.of, self.stacked))
        matrices = zip(*self.experts, strict=True)
        return Expert(*(Separate(parts=tuple(storage.of(one[None]) for one in each)) for each in matrices))


def random_layer(num_experts: int, d: int, f: int, dtype: str = "float32", seed: int = 0) -> Layer:
    """Normal weights that keep the scale of activations."""
    rng = np.random.default_rng([seed, num_experts, d, f])

    def matrix(rows: int, columns: int) -> jnp.ndarray:
        return jnp.asarray(rng.standard_normal((rows, columns)) * columns**-0.5, dtype)

    return Layer(experts=[Expert(matrix(f, d), matrix(f, d), matrix(d, f)) for _ in range(num_experts)])


def route_loop(logits: np.ndarray, valid: np.ndarray, experts_per_token: int) -> Routing:
    """Softmax, then the best experts one after the other, the lower id first where two are equal."""
    t, num_experts = logits.shape
    experts = np.full((t, experts_per_token), num_experts, np.int32)
    weights = np.zeros((t, experts_per_token), np.float64)
    for token in range(t):
        if not valid[token]:
            continue
        exponentials = [float(np.exp(np.float64(one) - np.float64(logits[token].max()))) for one in logits[token]]
        best = sorted(range(num_experts), key=lambda e: (-logits[token, e], e))[:experts_per_token]
        total = sum(exponentials[e] for e in best)
        for place, e in enumerate(best):
            experts[token, place] = e
            weights[token, place] = exponentials[e] / total
    return Routing(jnp.asarray(experts), jnp.asarray(weights.astype(np.float32)))


def moe_loop(layer: Layer, x: np.ndarray, routing: Routing) -> np.ndarray:
    """For every token and every expert it chose: weight * down(silu(gate x) * up x)."""
    experts = [[np.asarray(matrix).astype(np.float64) for matrix in expert] for expert in layer.experts]
    out = np.zeros(x.shape, np.float64)
    for token, (chosen, weights) in enumerate(
        zip(np.asarray(routing.experts), np.asarray(routing.weights), strict=True)
    ):
        for e, weight in zip(chosen, weights, strict=True):
            if e == len(experts):
                continue
            gate, up, down = experts[e]
            activation = gate @ x[token].astype(np.float64)
            hidden = activation / (1 + np.exp(-activation)) * (up @ x[token].astype(np.float64))
            out[token] += np.float64(weight) * (down @ hidden)
    return out
