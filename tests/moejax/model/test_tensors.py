"""Weights of a loaded model by name: read and replaced, the same under every layout, storage and mesh."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moejax
from tests.messages import refuses
from tests.moejax.decoding.tiny_checkpoint import BASE, Tiny, load_tiny

SPLITS = [
    ("native", None, "float32"),
    ("native", "expert=2,tensor=2", "bfloat16"),
    ("blocked", "expert=3,tensor=2", "float32"),  # four experts in six places
    ("dense", "data=2,expert=2", "bfloat16"),
]
PROMPT = [[5, 9, 200, 7]]
GATE, DOWN, QUERIES = "layers.0.moe.experts.3.gate", "layers.1.moe.experts.2.down", "layers.0.attention.q"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensors")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Tiny:
    return load_tiny(folder / "one")


@pytest.fixture(scope="module")
def another(folder: Path) -> Tiny:
    return load_tiny(folder / "another", seed=3)


@pytest.fixture(scope="module", params=SPLITS, ids=lambda split: "-".join(map(str, split)))
def model(request: pytest.FixtureRequest, folder: Path, tiny: Tiny) -> moejax.Model:
    backend, mesh, dtype = request.param
    return moejax.load(folder / "one", mesh=mesh, dtype=dtype, expert_backend=backend)


def rounded(numbers: np.ndarray, model: moejax.Model) -> np.ndarray:
    return np.asarray(numbers).astype(jnp.dtype(model.dtype)).astype(np.float32)


def test_every_weight_by_both_names(model: moejax.Model, tiny: Tiny) -> None:
    names = model.names()
    assert set(names.values()) == set(tiny.weights)
    for ours, theirs in names.items():
        if not ours.startswith("layers.1") or "experts.2" in ours:
            got = model.get(ours)
            assert isinstance(got, jax.Array) and got.dtype == model.dtype and got.is_fully_replicated
            np.testing.assert_array_equal(np.asarray(got, np.float32), rounded(tiny.weights[theirs], model))
    np.testing.assert_array_equal(model.get(names[GATE]), model.get(GATE))


def test_weights_replaced(model: moejax.Model) -> None:
    names, before = model.names(), moejax.logits(model, PROMPT)[0]
    compiled = model.programs.compiled
    half = jnp.asarray(0.5, model.dtype)
    changed = {GATE: np.ones(model.get(GATE).shape), names[DOWN]: model.get(DOWN) * half, QUERIES: model.get(QUERIES)}
    other = model.with_params({**changed, QUERIES: -model.get(QUERIES)})
    assert np.all(np.asarray(other.get(GATE)) == 1)
    np.testing.assert_array_equal(other.get(DOWN), model.get(DOWN) * half)
    np.testing.assert_array_equal(other.get(QUERIES), -model.get(QUERIES))
    for name in ("layers.0.moe.experts.2.gate", "layers.1.moe.experts.3.down", "layers.0.attention.k"):
        np.testing.assert_array_equal(other.get(name), model.get(name))
    assert np.max(np.abs(moejax.logits(other, PROMPT)[0] - before)) > 0.1
    np.testing.assert_array_equal(moejax.logits(model, PROMPT)[0], before)  # which is not touched
    back = other.with_params({name: model.get(name) for name in changed})
    np.testing.assert_array_equal(moejax.logits(back, PROMPT)[0], before)
    assert model.programs.compiled == compiled and back.programs is model.programs
    assert back.params["layers.1.attention.q"] is model.params["layers.1.attention.q"]


def test_all_weights_replaced_are_the_other_model(model: moejax.Model, folder: Path, another: Tiny) -> None:
    expected = moejax.load(folder / "another", mesh=model.mesh, dtype=model.dtype, expert_backend=model.expert_backend)
    other = model.with_params(another.model.tensors())
    np.testing.assert_array_equal(moejax.logits(other, PROMPT)[0], moejax.logits(expected, PROMPT)[0])


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BASE, "tie_word_embeddings": True}))
    tied = moejax.load(f"random:{tmp_path / 'config.json'}", dtype="float32")
    assert "head.table" not in tied.names()
    for name in ("head.table", "lm_head.weight", "model.embed_tokens.weight"):
        np.testing.assert_array_equal(tied.get(name), tied.get("embed.table"))
    before = moejax.logits(tied, PROMPT)[0]
    other = tied.with_params({"lm_head.weight": 2 * tied.get("embed.table")})
    np.testing.assert_array_equal(other.get("embed.table"), 2 * tied.get("embed.table"))
    assert np.max(np.abs(moejax.logits(other, PROMPT)[0] - before)) > 0.1
    with refuses(ValueError, "'lm_head.weight'", "'embed.table'", "same weight"):
        tied.with_params({"lm_head.weight": other.get("embed.table"), "embed.table": other.get("embed.table")})


@pytest.mark.parametrize(
    ("name", "array", "facts"),
    [
        ("layers.0.moe.experts.4.gate", np.ones((24, 32)), ["'layers.0.moe.experts.4.gate'", "did you mean"]),
        ("layers.0.attention.query", np.ones((32, 32)), ["did you mean", "'layers.0.attention.q'"]),
        ("xyz", np.ones(3), ["'xyz'", "model.names()"]),
        (GATE, np.ones((32, 24)), [repr(GATE), "got [32, 24]", "expected [24, 32]"]),
        (GATE, np.ones((24, 32), np.int32), [repr(GATE), "int32"]),
        (GATE, [[1.0], [1.0, 2.0]], [repr(GATE), "list"]),
        (GATE, np.full((24, 32), 1e39), [repr(GATE), 768, "float32", "1e+39"]),
        (GATE, np.pad(np.full((1, 1), 1e39), ((3, 20), (5, 26))), [repr(GATE), 1, "float32", "1e+39"]),
    ],
)
def test_what_cannot_be_replaced(tiny: Tiny, name: str, array: Any, facts: list[str]) -> None:
    with refuses(ValueError, *facts):
        tiny.model.with_params({name: array})
    if name != GATE:
        with refuses(ValueError, *facts):
            tiny.model.get(name)


def test_what_is_no_mapping_of_names_to_numbers(tiny: Tiny) -> None:
    for given in ([1], None, tiny.model):
        with refuses(ValueError, "mapping", type(given).__name__):
            tiny.model.with_params(given)  # pyright: ignore[reportArgumentType]
    with refuses(ValueError, "mapping", "list"):
        tiny.model.replaced(tiny.model.params, [1])  # pyright: ignore[reportArgumentType]


def test_numbers_are_held_to_the_dtype_of_the_model(folder: Path, tiny: Tiny) -> None:
    half = moejax.load(folder / "one", dtype="float16")
    for numbers in (np.full((24, 32), 70_000.0), jnp.full((24, 32), 70_000.0)):
        with refuses(ValueError, repr(GATE), "float16", "70000.0"):
            half.with_params({GATE: numbers})
        assert np.all(np.asarray(tiny.model.with_params({GATE: numbers}).get(GATE)) == 70_000)
    for number in (np.inf, np.nan):  # which were no finite numbers before
        assert not np.isfinite(np.asarray(half.with_params({GATE: np.full((24, 32), number)}).get(GATE))).any()


def test_what_is_called_inside_a_traced_function_says_what_to_do(tiny: Tiny) -> None:
    for inside in (lambda x: tiny.model.get(GATE) + x, lambda x: tiny.model.with_params({GATE: x}).params):
        with refuses(ValueError, "jax.jit", "argument", "replaced") as caught:
            jax.jit(inside)(np.ones((24, 32), np.float32))
        assert "\n" not in str(caught.value)


def test_arrays_that_are_donated_are_no_model_s(folder: Path, tiny: Tiny) -> None:
    model = moejax.load(folder / "one", dtype="float32")
    query = "layers.0.attention.q"
    assert tiny.model.names() == model.names()
    before = np.asarray(model.get(query)).copy()
    given = {name: model.get(name) for name in model.names()}
    other = model.with_params(given)
    for array in (*given.values(), *model.tensors().values()):
        array.delete()  # as donating it to a program does
    for one in (model, other):
        assert jnp.array_equal(one.get(query), before)
        assert moejax.decode(one, [[1, 2, 3]], max_tokens=2)[0].token_ids
