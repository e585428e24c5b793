"""A storage that nobody has: one class and a backend that asks for it, with which models load, compute and split."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jaxtyping import Float, Int

import moejax
from moejax._sharding import LogicalAxes
from moejax.ops.table import BACKENDS, BackendName
from moejax.runtime.programs import Programs
from moejax.weights.layouts import Separate
from moejax.weights.storage import Plain, Read, Rows, linear
from tests.moejax.decoding.tiny_checkpoint import load_tiny

PROMPTS = [[1, 5, 9, 2], [7, 3]]


def rounded(numbers: Any) -> tuple[Any, Any]:
    """Whole numbers of 8 bits, and what they are multiples of."""
    numbers = numbers.astype(jnp.float32)
    steps = jnp.maximum(jnp.abs(numbers).max(axis=-1, keepdims=True), 1e-9) / 127
    return jnp.round(numbers / steps).astype(jnp.int8), steps


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Whole numbers of 8 bits, and what those of an output are multiples of: [*shape, one for each device's inputs]."""

    whole: Any
    steps: Any
    axes: LogicalAxes = field(metadata={"static": True})
    of_dtype: str = field(metadata={"static": True})

    @classmethod
    def declare(
        cls, shape: tuple[int, ...], axes: LogicalAxes, parts: tuple[int, ...], dtype: jax.typing.DTypeLike
    ) -> "Scaled":
        whole = jax.ShapeDtypeStruct(shape, jnp.int8)
        steps = jax.ShapeDtypeStruct((*shape[:-1], parts[-1]), jnp.float32)
        return cls(whole=whole, steps=steps, axes=axes, of_dtype=jnp.dtype(dtype).name)

    @classmethod
    def of(cls, numbers: Array) -> "Scaled":
        whole, steps = rounded(numbers)
        return cls(whole=whole, steps=steps, axes=(None,) * numbers.ndim, of_dtype=numbers.dtype.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return jnp.dtype(self.of_dtype)

    @property
    def nbytes(self) -> int:
        return self.whole.size + 4 * self.steps.size

    def per_array(self, make: Callable[[Any, LogicalAxes], Any]) -> "Scaled":
        return dataclasses.replace(self, whole=make(self.whole, self.axes), steps=make(self.steps, self.axes))

    def fill(self, reads: Iterable[tuple[tuple[int, ...], Read]]) -> None:
        for entry, read in reads:
            numbers = np.empty(self.shape[len(entry) :], self.dtype)
            read(numbers)
            self.whole[entry], self.steps[entry] = map(np.asarray, rounded(numbers))

    def numbers(self) -> Array:
        steps = jnp.repeat(self.steps, self.whole.shape[-1] // self.steps.shape[-1], axis=-1)
        return (self.whole.astype(jnp.float32) * steps).astype(self.dtype)

    def take(self, ids: Int[Array, "*ids"]) -> Float[Array, "*ids I"]:
        return self.numbers().at[ids].get(mode="clip")

    def product(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        return linear(x, self.numbers())


def as_plain(value: Any) -> Any:
    """A weight's value with the numbers of each scaled one as a plain one."""
    if isinstance(value, Separate):
        return Separate(parts=tuple(map(as_plain, value.parts)))
    return Plain(array=value.numbers(), axes=value.axes) if isinstance(value, Scaled) else value


@pytest.mark.parametrize("backend", ["dense", "blocked", "ragged"])
@pytest.mark.parametrize("mesh", [None, "expert=2"])
def test_a_model_computes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: BackendName, mesh: str | None
) -> None:
    load_tiny(tmp_path)
    plain = moejax.load(tmp_path, dtype="float32", expert_backend=backend, mesh=mesh)
    monkeypatch.setitem(BACKENDS, backend, dataclasses.replace(BACKENDS[backend], storage=Scaled))
    scaled = moejax.load(tmp_path, dtype="float32", expert_backend=backend, mesh=mesh)
    assert isinstance(scaled.params["layers.0.attention.q"], Scaled)
    assert isinstance(scaled.params["embed.table"], Rows)
    logical, exact = (one.structure.unpack(one.params) for one in (scaled, plain))
    for path, numbers in logical.items():
        np.testing.assert_allclose(numbers, exact[path], rtol=0, atol=float(np.abs(exact[path]).max()) / 253)
    params = {path: as_plain(value) for path, value in scaled.params.items()}
    expected = dataclasses.replace(plain, params=params, programs=Programs(plain.parallel.sharding()))
    for one, other in zip(moejax.logits(scaled, PROMPTS), moejax.logits(expected, PROMPTS), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    tokens = [[result.token_ids for result in moejax.decode(one, PROMPTS, max_tokens=6)] for one in (scaled, expected)]
    assert tokens[0] == tokens[1]


def test_what_it_declares() -> None:
    declared = Scaled.declare((6, 4), ("vocab", "embed"), (1, 1), "bfloat16")
    assert (declared.whole.shape, declared.steps.shape, declared.nbytes) == ((6, 4), (6, 1), 24 + 24)
