"""A program that uses moejax may set JAX's own settings as it likes: the same weights, tokens and logits."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import moejax
from moejax.families.table import from_hf
from moejax.loading import random_model
from moejax.moe.split import resolve_split
from moejax.runtime import ambient
from tests.messages import refuses
from tests.moejax.decoding.tiny_checkpoint import BASE, load_tiny

MESH = "expert=4,tensor=2"
PROMPTS = [[5, 9, 200, 7], [0, 17, 42]]


@contextmanager
def option(name: str, value: Any) -> Iterator[None]:
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def explicit_mesh() -> AbstractContextManager[Any]:
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    return jax.set_mesh(jax.make_mesh((4, 2), ("expert", "tensor"), axis_types=explicit))


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "a mesh": lambda: jax.set_mesh(jax.make_mesh((8,), ("x",))),
    "a mesh with our axes": explicit_mesh,
    "an abstract mesh": lambda: jax.sharding.use_abstract_mesh(jax.make_mesh((8,), ("x",)).abstract_mesh),
    "another default device": lambda: jax.default_device(jax.devices()[3]),
}
OPTIONS: list[tuple[str, Any]] = [
    ("jax_default_prng_impl", "rbg"),
    ("jax_default_prng_impl", "unsafe_rbg"),
    ("jax_threefry_partitionable", False),
    ("jax_random_seed_offset", 7),
    ("jax_legacy_prng_key", "error"),
    ("jax_debug_key_reuse", True),
    ("jax_disable_jit", True),
    ("jax_no_tracing", True),
    ("jax_transfer_guard", "disallow"),
    ("jax_transfer_guard", "disallow_explicit"),
    ("jax_enable_x64", True),
    ("jax_numpy_dtype_promotion", "strict"),
    ("jax_numpy_rank_promotion", "raise"),
    ("jax_default_matmul_precision", "bfloat16"),
    ("jax_debug_nans", True),
    ("jax_debug_infs", True),
]
AMBIENT = CONTEXTS | {f"{name}={value}": lambda n=name, v=value: option(n, v) for name, value in OPTIONS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ambient") / "tiny"
    load_tiny(folder, num_hidden_layers=1)
    return folder


def outcome(folder: Path, mesh: str | None) -> tuple[Any, ...]:
    """What a model that is loaded now says: greedy tokens, sampled ones, logits."""
    model = moejax.load(folder, dtype="float32", mesh=mesh)
    greedy = moejax.decode(model, PROMPTS, max_tokens=4)
    sampled = moejax.decode(model, PROMPTS, max_tokens=4, temperature=1.0, top_p=0.9, seed=3)
    streamed = [event.token_id for event in moejax.decode(model, PROMPTS, max_tokens=4, stream=True)]
    tokens = [result.token_ids for result in (*greedy, *sampled)]
    return tokens, streamed, [np.asarray(one) for one in moejax.logits(model, [[0, 17, 42]])]


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str | None, tuple[Any, ...]]:
    return {mesh: outcome(folder, mesh) for mesh in (None, MESH)}


@pytest.mark.parametrize(("setting", "mesh"), [*((one, MESH) for one in AMBIENT), *((one, None) for one in CONTEXTS)])
def test_a_setting_changes_nothing(
    setting: str, mesh: str | None, folder: Path, expected: dict[str | None, tuple[Any, ...]]
) -> None:
    with AMBIENT[setting]():
        tokens, streamed, logits = outcome(folder, mesh)
    assert (tokens, streamed) == expected[mesh][:2]
    np.testing.assert_array_equal(logits[0], expected[mesh][2][0])


def random_weights() -> dict[str, np.ndarray]:
    config = from_hf({**BASE, "num_hidden_layers": 1})
    model = random_model(config, resolve_split(config, None, "auto"), "float32", seed=5)
    return {path: np.asarray(value) for path, value in model.structure.unpack(model.params).items()}


@pytest.mark.parametrize("setting", AMBIENT)
def test_random_weights_are_those_of_their_seed(setting: str) -> None:
    expected = random_weights()
    with AMBIENT[setting]():
        found = random_weights()
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


def test_what_cannot_be_pinned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = moejax.load("demo")
    monkeypatch.setitem(ambient.REQUIRED, "jax_log_compiles", True)
    with refuses(ValueError, "jax_log_compiles", "True", "False"):
        moejax.decode(model, "a", max_tokens=1)


@pytest.mark.parametrize("transformation", [jax.jit, jax.vmap, jax.grad])
def test_inside_a_traced_function_it_is_refused(transformation: Callable[..., Any]) -> None:
    model = moejax.load("demo")

    def traced(x: jax.Array) -> jax.Array:
        moejax.decode(model, "a", max_tokens=1)
        return x

    with refuses(ValueError, "outside", "jax.jit"):
        transformation(traced)(1.0 if transformation is jax.grad else np.ones(3, np.float32))


def test_a_stream_leaves_the_settings_of_its_reader() -> None:
    model = moejax.load("demo")
    with jax.enable_x64(True):
        events = moejax.decode(model, "a", max_tokens=3, stream=True)
        seen = [jax.numpy.zeros((), float).dtype for _ in events]
    assert seen and set(map(str, seen)) == {"float64"}


FORKING = """
import os, signal, sys
import moejax
model = moejax.load("demo", dtype="float32")
moejax.decode(model, "a", max_tokens=1)
child = os.fork()
if child == 0:
    signal.alarm(60)
    said = []
    for call in (
        lambda: moejax.decode(model, "a", max_tokens=1),
        lambda: list(moejax.decode(model, "a", max_tokens=1, stream=True)),
        lambda: moejax.logits(model, [[1]]),
        lambda: moejax.load("demo"),
    ):
        try:
            call()
        except RuntimeError as error:
            said.append(str(error))
    ours = len(said) == 4 and all("forked" in one and "spawn" in one and "\\n" not in one for one in said)
    os._exit(0 if ours else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), moejax.decode(model, "a", max_tokens=1)[0].finish_reason)
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=Path(__file__).resolve().parents[2],
    )


def test_a_forked_child_is_told() -> None:
    assert run(FORKING).stdout == "0 length\n"


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_a_platform_that_is_not_there_is_named(platform: str) -> None:
    done = run("import moejax; moejax.load('demo')", JAX_PLATFORMS=platform, JAX_NUM_CPU_DEVICES="1")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ValueError: ")
    assert "JAX_PLATFORMS" in last and platform in last
