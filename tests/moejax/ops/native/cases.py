"""Cases for `run_cases.cc`, which runs the kernels without JAX: operands, and the names of results."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from moejax.weights import strips

DTYPES = ("float32", "float16", "bfloat16")

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A line of the program's `cases`, its operands, and the dtypes of its results."""

    operation: str
    dtype: str
    name: str
    sizes: tuple[int, ...]
    operands: Arrays
    results: Mapping[str, str]

    @property
    def line(self) -> str:
        return " ".join(map(str, (self.operation, self.dtype, f"{self.dtype}.{self.name}", *self.sizes)))


def normal(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(jnp.dtype(dtype))


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


# Rows around a tile's and many of them, outputs around a strip's, pairs of inputs and half a pair.
PRODUCTS = [(1, 1, 1), (2, 3, 31), (5, 64, 64), (7, 65, 33), (23, 130, 200), (200, 70, 131)]
COMPANY, COMPANY_SHAPE = (1, 2, 3, 4, 5, 6, 7, 61), (70, 77)  # rows, and outputs and inputs
EXPERTS = [(1, 37, 53, 2, 8), (60, 133, 77, 2, 3)]  # tokens, depth, hidden depth, chosen, experts
EVERY_FLOAT16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
TINY = (1e-20, 1e-19)  # whose product float32 has as a denormal number only
NORMS = [(1, 1), (3, 17), (1400, 203)]
# Batch, key/value heads, group, queries, positions, width, window, soft cap, whether there are sinks: steps and
# prompts, with tails of every kind.
ATTENTION = [(2, 2, 5, 1, 40, 7, 0, 0, 0), (1, 1, 4, 1, 150, 64, 9, 0, 0), (2, 2, 3, 70, 150, 20, 0, 0, 0)]
ATTENTION += [(2, 2, 3, 70, 150, 33, 60, 0, 0), (1, 1, 1, 2, 3, 8, 0, 0, 0), (1, 2, 2, 5, 130, 80, 0, 0, 0)]
ATTENTION += [(2, 2, 5, 1, 40, 8, 0, 2, 1), (2, 2, 3, 70, 150, 20, 60, 0, 1), (1, 2, 2, 5, 130, 16, 0, 1, 0)]
LAST = 2  # queries of a prompt's last row that are computed alone, too
ROTATIONS = [(1, 1, 2, 1, 4, 8), (3, 5, 4, 2, 20, 34), (2, 300, 4, 2, 300, 34)]
ROUTES = [(1, 1, 1), (40, 8, 2), (5, 64, 6)]


def product_of(rows: int, outputs: int, inputs: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    return normal((rows, inputs), dtype), normal((outputs, inputs), dtype, 1)


def attention_of(shape: tuple[int, ...], dtype: str) -> dict[str, np.ndarray]:
    b, k, g, t, s, h, _, _, sinks = shape
    operands = {"q": normal((b, k, g, t, h), dtype)}
    operands |= {name: normal((b, k, s, h), dtype, seed) for seed, name in enumerate("kv", 1)}
    operands |= {"sinks": 2 * normal((k, g))} if sinks else {}
    return operands | {"starts": np.random.default_rng(s).integers(0, s - t + 1, b).astype(np.int32)}


def rotation_of(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    b, t, n, k, s, h = shape
    angles = normal((b, t, h // 2), seed=3)
    heads = {"q": normal((b, t, n, h)), "k": normal((b, t, k, h), seed=1), "v": normal((b, t, k, h), seed=2)}
    heads["v"][..., : h // 2] *= 1e-6  # in float16, below its smallest normal number
    starts = np.arange(b, dtype=np.int32) * s // 2  # the last one's tokens go to the last slots
    return heads | {"cos": np.cos(angles), "sin": np.sin(angles), "starts": starts}


def routing_of(tokens: int, experts: int) -> dict[str, np.ndarray]:
    logits = np.round(2 * normal((tokens, experts))) / 2  # with many ties
    return {"logits": logits.astype(np.float32), "valid": (np.arange(tokens) % 3 != 1).astype(np.uint8)}


def packed(w: np.ndarray) -> np.ndarray:
    return np.asarray(strips.pack(jnp.asarray(w)))


def experts_of(shape: tuple[int, ...], dtype: str) -> dict[str, np.ndarray]:
    """Weights as they are before they are packed, of variance one over their inputs; some ids are none."""
    tokens, depth, hidden, chosen, experts = shape
    shapes = {"gate": (experts, hidden, depth), "up": (experts, hidden, depth), "down": (experts, depth, hidden)}
    operands = {
        name: (normal(s, seed=seed) / s[-1] ** 0.5).astype(jnp.dtype(dtype))
        for seed, (name, s) in enumerate(shapes.items())
    }
    rng = np.random.default_rng(shape)
    ids = np.stack([rng.permutation(experts + 1)[:chosen] for _ in range(tokens)]).astype(np.int32)
    return operands | {"x": normal((tokens, depth), dtype), "ids": ids, "weights": rng.random(ids.shape, np.float32)}


def named(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def all_cases() -> Iterator[Case]:
    for dtype in DTYPES:

        def case(
            operation: str,
            sizes: tuple[int, ...],
            operands: Arrays,
            results: Mapping[str, str],
            name: str = "",
            dtype: str = dtype,
        ) -> Case:
            name = f"{operation}.{name or named(sizes)}"
            return Case(operation=operation, dtype=dtype, name=name, sizes=sizes, operands=operands, results=results)

        def multiply(x: np.ndarray, w: np.ndarray, name: str = "") -> Case:
            return case("linear", (len(x), *w.shape), {"x": x, "w": packed(w)}, {"y": "float32"}, name)

        for shape in PRODUCTS:
            yield multiply(*product_of(*shape, dtype))
        x, w = product_of(max(COMPANY), *COMPANY_SHAPE, dtype)
        for rows in COMPANY:
            yield multiply(x[:rows][::-1], w)
        x, w = (np.full((1, 1), number, jnp.dtype(dtype)) for number in TINY)
        yield multiply(x, w, "tiny")
        if dtype == "float16":
            yield multiply(EVERY_FLOAT16[:, None], np.ones((1, 1), dtype), "every")
        for shape in EXPERTS:
            operands = experts_of(shape, dtype)
            tokens, *rest = shape
            for some in {1, tokens}:
                part = {name: operand[:some] for name, operand in operands.items() if name in ("x", "ids", "weights")}
                matrices = {name: packed(operands[name]) for name in ("gate", "up", "down")}
                yield case("experts", (some, *rest), part | matrices, {"y": "float32"})
        for rows, depth in NORMS:
            x, scale = normal((rows, depth), dtype), normal((depth,), dtype, 1)
            yield case("norm", (rows, depth), {"x": x, "scale": scale}, {"y": dtype})
        x, scale = normal(NORMS[-1], dtype)[-1:], normal(NORMS[-1][1:], dtype, 1)
        yield case("norm", x.shape, {"x": x, "scale": scale}, {"y": dtype}, "alone")
        for shape in ATTENTION:
            operands = attention_of(shape, dtype)
            yield case("attend", shape, operands, {"y": "float32"})
            _, k, g, t, *rest = shape
            if t > LAST:
                part = {name: operand if name == "sinks" else operand[-1:] for name, operand in operands.items()}
                part |= {"q": part["q"][..., -LAST:, :], "starts": part["starts"] + t - LAST}
                yield case("attend", (1, k, g, LAST, *rest), part, {"y": "float32"}, f"{named(shape)}.alone")
        for shape in ROTATIONS:
            yield case("rotate", shape, rotation_of(shape), dict.fromkeys("qkv", dtype))
    for shape in ROUTES:
        results = {"ids": "int32", "weights": "float32"}
        yield Case(
            operation="route",
            dtype="float32",
            name=f"route.{named(shape)}",
            sizes=shape,
            operands=routing_of(*shape[:2]),
            results=results,
        )
