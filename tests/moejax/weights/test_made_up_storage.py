"""A storage that nobody has: one class and its row, with which a model computes on one device and on a mesh."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jaxtyping import Float

import moejax
from moejax.runtime.programs import Programs
from moejax.weights.layouts import Separate, declare
from moejax.weights.storage import STORAGES, Plain, linear
from moejax.weights.weight import Weight, fan_in
from sharding import LogicalAxes
from tests.moejax.decoding.tiny_checkpoint import load_tiny

PROMPTS = [[1, 5, 9, 2], [7, 3]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Whole numbers of 8 bits, and for each output the number that they are multiples of."""

    whole: Any
    steps: Any
    axes: LogicalAxes = field(metadata={"static": True})
    dtype: str = field(metadata={"static": True})

    @classmethod
    def declare(cls, shape: tuple[int, ...], axes: LogicalAxes, dtype: jax.typing.DTypeLike) -> "Scaled":
        whole, steps = jax.ShapeDtypeStruct(shape, jnp.int8), jax.ShapeDtypeStruct(shape[:-1], jnp.float32)
        return cls(whole=whole, steps=steps, axes=axes, dtype=jnp.dtype(dtype).name)

    @classmethod
    def of(cls, plain: Plain) -> "Scaled":
        numbers = plain.array.astype(jnp.float32)
        steps = jnp.maximum(jnp.abs(numbers).max(axis=-1), 1e-9) / 127
        whole = jnp.round(numbers / steps[..., None]).astype(jnp.int8)
        return cls(whole=whole, steps=steps, axes=plain.axes, dtype=plain.array.dtype.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape

    @property
    def nbytes(self) -> int:
        return self.whole.size + 4 * self.steps.size

    def per_array(self, make: Callable[[Any, LogicalAxes], Any]) -> "Scaled":
        return dataclasses.replace(self, whole=make(self.whole, self.axes), steps=make(self.steps, self.axes[:-1]))

    def numbers(self) -> Array:
        return (self.whole.astype(jnp.float32) * self.steps[..., None]).astype(self.dtype)

    def product(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        return linear(x, self.numbers())


def stored(value: Any, kind: Callable[[Plain], Any]) -> Any:
    """A weight's value with each plain one, of more than one axis, as `kind` makes it."""
    if isinstance(value, Separate):
        return Separate(parts=tuple(stored(part, kind) for part in value.parts))
    return kind(value) if isinstance(value, Plain) and len(value.shape) > 1 else value


def rounded(plain: Plain) -> Plain:
    return dataclasses.replace(plain, array=Scaled.of(plain).numbers())


@pytest.mark.parametrize("backend", ["dense", "blocked", "ragged"])
@pytest.mark.parametrize("mesh", [None, "expert=2,tensor=2"])
def test_a_model_computes_with_it(tmp_path: Path, backend: str, mesh: str | None) -> None:
    load_tiny(tmp_path)
    model = moejax.load(tmp_path, dtype="float32", expert_backend=backend, mesh=mesh)

    def with_storage(kind: Callable[[Plain], Any]) -> moejax.Model:
        params = {path: stored(value, kind) for path, value in model.params.items()}
        return dataclasses.replace(model, params=params, programs=Programs(model.parallel.sharding()))

    scaled, expected = with_storage(Scaled.of), with_storage(rounded)
    for one, other in zip(moejax.logits(scaled, PROMPTS), moejax.logits(expected, PROMPTS), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    tokens = [[result.token_ids for result in moejax.decode(one, PROMPTS, max_tokens=6)] for one in (scaled, expected)]
    assert tokens[0] == tokens[1]
    logical, plain = (one.structure.unpack(one.params) for one in (scaled, expected))
    assert all(np.array_equal(logical[path], plain[path]) for path in plain)


def test_a_weight_is_declared_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(dict[str, Any], STORAGES), "scaled", Scaled)
    weight = Weight(
        path="a", shape=(6, 4), axes=("vocab", "embed"), init=fan_in(4), names=("a",), item="a", key="a", part="head"
    )
    declared = cast(Scaled, declare(weight, "stacked", 0, 1, "bfloat16", cast(Any, "scaled")))
    assert (declared.whole.shape, declared.steps.shape, declared.nbytes) == ((6, 4), (6,), 24 + 24)
