"""Every dispatch on meshes of simulated devices, against the loop over single tokens."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.families.config import ModelConfig
from moejax.moe.layer import Routed
from moejax.moe.split import DISPATCHES
from moejax.ops.routing import Routing
from moejax.ops.table import BackendName, make_ops
from moejax.ops.triton.kernels import KERNELS
from moejax.weights.filling import stored
from moejax.weights.layouts import Piece, pack
from moejax.weights.params import merge, split
from moejax.weights.placement import PhysicalExperts
from moejax.weights.storage import Stored
from tests.moejax.meshes import moe_module, on_mesh
from tests.moejax.moe.oracle import Layer, moe_loop, random_layer, route_loop

E, D, F = 8, 8, 12
ROWS, T = 8, 3  # on 8 devices, each has one row of three tokens

# Outputs of order 1 from sums of at most 12 products, in up to 16 parts: float32 rounds each to 6e-8.
FLOAT32_ATOL = 3e-6

MESHES = [
    "expert=1",
    "expert=2",
    "expert=4",
    "expert=8",
    "tensor=2",
    "expert=2,tensor=2",
    "expert=4,tensor=2",
    "data=2,expert=4",
    "data=2,expert=2,tensor=2",
]
HYBRID = "data=2,expert=2,tensor=2"

dispatches = pytest.mark.parametrize("dispatch", list(DISPATCHES))


class Program(NamedTuple):
    """One layer on a mesh. run: (router, layer, x, valid, what the places hold).  compiled: how often it was."""

    run: Callable[..., tuple[jax.Array, Routed]]
    compiled: Callable[[], int]

    def __call__(self, *args: Any) -> tuple[jax.Array, Routed]:
        return self.run(*args)


@cache
def program(
    mesh: str, dispatch: str, backend: BackendName, experts_per_token: int, places: int | None = None
) -> Program:
    """Compiled: (router [E, D], layer, x, valid) -> (y, routed); the arguments are placed as the model places them."""
    config = ModelConfig(
        vocab_size=8,
        embed_dim=D,
        num_layers=1,
        num_heads=8,
        num_kv_heads=8,
        head_dim=2,
        num_experts=E,
        experts_per_token=experts_per_token,
        expert_dim=F,
        max_position_embeddings=8,
    )
    parallel = on_mesh(config, mesh, dispatch)
    graphdef, abstract = split(moe_module(config, backend, parallel, dtype="float32", places=places))

    @jax.jit
    def layer_on_mesh(params: Any, x: jax.Array, valid: jax.Array, table: jax.Array) -> tuple[jax.Array, Routed]:
        return merge(graphdef, abstract, params)(parallel.constrain(x, "batch"), valid, table)

    def run(
        router: np.ndarray, layer: Layer, x: np.ndarray, valid: np.ndarray, held: tuple[int, ...] | None = None
    ) -> tuple[jax.Array, Routed]:
        total = abstract["experts.gate"].get_value().shape[0]
        experts = PhysicalExperts(E, (held,)) if held else PhysicalExperts.in_order(1, E, total)
        params = {}
        for path, variable in abstract.items():
            weight, value = variable.get_metadata("weight"), variable.get_value()

            def one(piece: Piece, declared: Stored, path: str = path) -> Stored:
                whole = router if path == "router" else experts_of(layer, path, piece, experts.held[0])
                numbers = jax.device_put(whole.astype(declared.dtype), parallel.sharding(*piece.axes))
                return stored(declared, piece, numbers, parallel.sharding, np.empty)

            params[path] = pack(weight, value, make_ops(backend).layout, total, parallel.rules.parts("experts"), one)
        return layer_on_mesh(params, x, valid, experts.tables()[0])

    compiled: Any = layer_on_mesh
    return Program(run, lambda: compiled._cache_size())


def experts_of(layer: Layer, path: str, piece: Any, held: tuple[int, ...]) -> np.ndarray:
    """The matrices of the experts in the places of an array, zeros where there is none."""
    name = path.rsplit(".", 1)[1]
    matrices = [np.asarray(getattr(one, name)) for one in layer.experts]
    matrices.append(np.zeros_like(matrices[0]))
    return np.stack([matrices[held[place]] for place in piece.places])


# --- what tokens choose: small integers, so that logits are exact and ties are ties ---


def random_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """router [E, D], x [ROWS, T, D] and valid [ROWS, T], all of them True; every x has a 1 in place 0."""
    rng = np.random.default_rng(seed)
    router = rng.integers(-1, 2, (E, D)).astype(np.float32)
    x = rng.integers(-4, 5, (ROWS, T, D)).astype(np.float32) / 2
    router[:, 0], x[:, :, 0] = 0, 1
    return router, x, np.ones((ROWS, T), bool)


def preferring(experts: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    router, x, valid = random_case(1)
    router[experts, 0] = 30
    return router, x, valid


def tied() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, x, valid = random_case(2)
    return np.zeros((E, D), np.float32), x, valid


def padded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts of different lengths, and rows that are padding altogether; what is in padding is large."""
    router, x, valid = random_case(3)
    valid = np.arange(T)[None, :] < np.array([3, 1, 0, 2, 0, 0, 3, 1])[:, None]
    return router, np.where(valid[..., None], x, np.float32(1e4)), valid


CASES = {
    "random": random_case(),
    "ties": tied(),
    "all tokens on the last expert": preferring([7]),
    "all tokens on one expert in the middle": preferring([3]),
    "experts of one device only": preferring([4, 5, 6, 7]),
    "padding": padded(),
    "nothing but padding": (*random_case()[:2], np.zeros((ROWS, T), bool)),
}


def check(mesh: str, dispatch: str, backend: BackendName, experts_per_token: int, case: str) -> None:
    """Output, chosen experts, and rows per expert of every group of devices, against the loop and a count."""
    router, x, valid = CASES[case]
    layer = random_layer(E, D, F)
    y, routed = program(mesh, dispatch, backend, experts_per_token)(router, layer, x, valid)
    expected = route_loop(x.reshape(-1, D) @ router.T, valid.reshape(-1), experts_per_token)
    chosen = np.asarray(expected.experts).reshape(ROWS, T, experts_per_token)
    np.testing.assert_array_equal(routed.experts, chosen)
    y_loop = moe_loop(layer, x.reshape(-1, D), expected).reshape(x.shape)
    np.testing.assert_allclose(y, y_loop, rtol=0, atol=FLOAT32_ATOL)
    assert not np.asarray(y)[~valid].any()
    np.testing.assert_array_equal(routed.rows, rows_per_expert(chosen, routed.rows.shape[0]))
    assert routed.rows.sum() == valid.sum() * experts_per_token, "a token was dropped or computed twice"


def rows_per_expert(chosen: np.ndarray, groups: int) -> np.ndarray:
    """[groups, E]; each group of devices has an equal share of the batch, in order."""
    return np.array([np.bincount(part.ravel(), minlength=E + 1)[:E] for part in np.split(chosen, groups)])


@dispatches
@pytest.mark.parametrize("mesh", MESHES)
def test_equals_the_loop(mesh: str, dispatch: str) -> None:
    for case in CASES:
        check(mesh, dispatch, "blocked", 2, case)


@dispatches
@pytest.mark.parametrize("experts_per_token", [1, 4])
@pytest.mark.parametrize("mesh", ["expert=8", HYBRID])
def test_other_numbers_of_experts_per_token(mesh: str, dispatch: str, experts_per_token: int) -> None:
    for case in CASES:
        check(mesh, dispatch, "blocked", experts_per_token, case)


@dispatches
@pytest.mark.parametrize("backend", ["dense", "ragged"])
@pytest.mark.parametrize("mesh", ["expert=4,tensor=2", "data=2,expert=4"])
def test_other_backends(mesh: str, dispatch: str, backend: BackendName) -> None:
    for case in CASES:
        check(mesh, dispatch, backend, 2, case)


@pytest.mark.parametrize(("dispatch", "most"), [("replicated", 64), ("all_to_all", 2)], ids=["decode", "prefill"])
def test_kernels_on_local_experts(dispatch: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, on four devices that each hold halves of four experts: local ids count from 0, and 4 is none."""
    monkeypatch.setitem(KERNELS, "interpret", replace(KERNELS["interpret"], most_tokens=most))
    program.cache_clear()
    for case in CASES:
        check("expert=2,tensor=2", dispatch, "pallas", 2, case)
    program.cache_clear()


@dispatches
def test_no_token_is_lost_when_all_want_one_expert(dispatch: str) -> None:
    """All tokens of all eight devices on one expert of one device: more than a capacity factor would ever allow."""
    router, x, valid = CASES["all tokens on the last expert"]
    _, routed = program("expert=8", dispatch, "blocked", 1)(router, random_layer(E, D, F), x, valid)
    np.testing.assert_array_equal(routed.rows, [[0] * 7 + [ROWS * T]])


@dispatches
@pytest.mark.parametrize("mesh", ["expert=4", HYBRID])
def test_an_expert_that_nobody_chose_is_not_read(mesh: str, dispatch: str) -> None:
    """Its weights are NaN, which would show wherever they were multiplied with, be it by 0."""
    router, x, valid = CASES["padding"]
    router = router.copy()
    router[[0, 2, 5], 0] = -30
    layer = random_layer(E, D, F)
    poisoned = Layer(
        experts=[
            type(one)(*(jnp.full_like(matrix, jnp.nan) for matrix in one)) if i in (0, 2, 5) else one
            for i, one in enumerate(layer.experts)
        ]
    )
    y, routed = program(mesh, dispatch, "blocked", 2)(router, poisoned, x, valid)
    assert not np.asarray(routed.rows)[:, [0, 2, 5]].any()
    expected: Routing = route_loop(x.reshape(-1, D) @ router.T, valid.reshape(-1), 2)
    np.testing.assert_allclose(y, moe_loop(layer, x.reshape(-1, D), expected).reshape(x.shape), atol=FLOAT32_ATOL)


def test_cases_are_what_they_are_called() -> None:
    router, x, _ = CASES["random"]
    logits = np.sort(x.reshape(-1, D) @ router.T, axis=1)
    assert (logits[:, -2] == logits[:, -3]).any(), "no tie at the last place that is chosen"
    assert (np.bincount(np.argmax(x.reshape(-1, D) @ router.T, axis=1), minlength=E) > 0).sum() >= 5


# Where experts are: in another order, some of them twice, empty places between them; E is none.
PLACEMENTS = {
    "in order": tuple(range(E)) + (E,) * 4,
    "reversed": (E, *reversed(range(E)), E, E, E),
    "one expert five times": (3, 0, 3, 1, 2, 3, 4, 5, 3, 6, 7, 3),
    "two experts three times": (7, 0, 1, 7, 2, 3, 0, 4, 5, 0, 6, 7),
}


@dispatches
@pytest.mark.parametrize("backend", ["blocked", "dense", "native"])
@pytest.mark.parametrize("mesh", ["expert=1", "expert=4,tensor=2", "data=2,expert=2,tensor=2"])
def test_where_experts_are_changes_nothing_and_compiles_nothing(mesh: str, dispatch: str, backend: BackendName) -> None:
    """Experts permuted and replicated over 12 places: one program, the output of the experts in order."""
    run = program(mesh, dispatch, backend, 2, 12)
    for case in ("random", "all tokens on one expert in the middle", "padding"):
        router, x, valid = CASES[case]
        layer = random_layer(E, D, F)
        expected, plain = program(mesh, dispatch, backend, 2)(router, layer, x, valid)
        for held in PLACEMENTS.values():
            y, routed = run(router, layer, x, valid, held)
            np.testing.assert_allclose(y, expected, rtol=0, atol=FLOAT32_ATOL)
            np.testing.assert_array_equal(routed.experts, plain.experts)
            by_expert = PhysicalExperts(E, (held,)).by_expert(np.asarray(routed.rows)[:, None])
            np.testing.assert_array_equal(by_expert[:, 0], plain.rows)
    assert run.compiled() == 1


def test_replicas_share_the_rows_of_their_expert() -> None:
    router, x, valid = CASES["all tokens on one expert in the middle"]
    held = PLACEMENTS["one expert five times"]
    _, routed = program("expert=4", "replicated", "blocked", 2, 12)(router, random_layer(E, D, F), x, valid, held)
    rows = np.asarray(routed.rows)[0][[place for place, expert in enumerate(held) if expert == 3]]
    assert rows.sum() == ROWS * T and rows.max() - rows.min() <= 1


@dispatches
@pytest.mark.parametrize("mesh", ["expert=3", "expert=6"])
def test_experts_that_do_not_divide_are_padded_with_empty_places(mesh: str, dispatch: str) -> None:
    for case in CASES:
        router, x, valid = CASES[case]
        layer, rows = random_layer(E, D, F), 6 if dispatch != "replicated" else ROWS
        x, valid = x[:rows], valid[:rows]
        expected, plain = program("expert=1", dispatch, "blocked", 2)(router, layer, x, valid)
        y, routed = program(mesh, dispatch, "blocked", 2)(router, layer, x, valid)
        np.testing.assert_allclose(y, expected, rtol=0, atol=FLOAT32_ATOL)
        assert not np.asarray(routed.rows)[:, E:].any()
        np.testing.assert_array_equal(np.asarray(routed.rows)[:, :E], plain.rows)
