"""The same model on every mesh and with every dispatch: the same logits and the same greedy tokens as one device."""

import jax
import pytest

import moejax
from moejax._sharding import MeshConfig, mesh_shapes
from moejax.measuring.meshes import OneDevice, compare_model, on_one_device
from moejax.moe.split import DISPATCHES
from tests.moejax.decoding.tiny_checkpoint import load_tiny
from tests.moejax.mesh_programs import check_collectives, check_memory

# 2 layers; N = 8 and V = 304 divide over 8 devices, K = 4 over 4 and over no more.
FIELDS = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_local_experts": 8, "vocab_size": 304}
GRID = [(mesh, dispatch) for devices in (1, 2, 4, 8) for mesh in mesh_shapes(devices) for dispatch in DISPATCHES]
DEMO_MESHES = (
    ("tensor=8", "replicated"),
    ("expert=8", "all_to_all"),
    ("expert=4,tensor=2", "gather"),
    ("data=2,expert=2,tensor=2", "replicated"),
    ("data=8", "replicated"),
    ("data=3,expert=2", "gather"),
)


@pytest.fixture(scope="module", autouse=True)
def eight_devices() -> None:
    assert jax.device_count() == 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> OneDevice:
    folder = tmp_path_factory.mktemp("tiny")
    load_tiny(folder, tokenizer=False, intermediate_size=32, **FIELDS)
    # The backend whose programs compile fastest: 60 of them. The bundled checkpoint's meshes take the default one.
    return on_one_device(str(folder), expert_backend="dense")


@pytest.fixture(scope="module")
def demo() -> OneDevice:
    return on_one_device("demo")


def check(reference: OneDevice, mesh: MeshConfig, dispatch: str) -> moejax.Model:
    """Compares the model on a mesh with one device; returns it, with the programs that it compiled."""
    model = moejax.load(reference.source, mesh=mesh, dispatch=dispatch, **reference.options)
    compared = compare_model(reference, model)
    assert compared.tolerance == 1e-4
    assert compared.logits.max_abs <= 1e-4
    assert compared.token_gap is None and compared.passed and compared.logits.greedy_agreement == 1
    assert [len(tokens) for tokens in reference.tokens] == [32] * 3
    return model


@pytest.mark.parametrize(("mesh", "dispatch"), GRID, ids=[f"{mesh}-{dispatch}" for mesh, dispatch in GRID])
def test_grid(tiny: OneDevice, mesh: MeshConfig, dispatch: str) -> None:
    """Logits, tokens, collectives and memory, of one model, so that its programs are compiled once."""
    model = check(tiny, mesh, dispatch)
    print(f"\nOne decode step on {mesh}, {dispatch}:\n{check_collectives(model)}")
    check_memory(model)


@pytest.mark.parametrize(("mesh", "dispatch"), DEMO_MESHES)
def test_bundled_checkpoint(demo: OneDevice, mesh: str, dispatch: str) -> None:
    check_collectives(check(demo, MeshConfig.parse(mesh), dispatch))
