"""A family is one file and one row: everything that takes a checkpoint takes one of a family that nobody has."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import moejax
from moejax.bench.random_folder import write_random_folder
from moejax.cli.app import run
from moejax.families.config import ModelConfig
from moejax.families.table import FAMILIES, parameters_of, weights_of
from moejax.measuring.meshes import FLOAT32_TOLERANCE, OneDevice, compare_model, on_one_device
from tests.moejax.families.made_up import MADE_UP

CONFIG = ModelConfig(
    family="made_up",
    vocab_size=64,
    embed_dim=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    num_experts=6,
    experts_per_token=2,
    expert_dim=24,
    dense_dim=40,
    dense_layers=(0,),
    max_position_embeddings=128,
)
PROMPTS = [[1, 2, 3], [5, 6, 7, 8, 9]]


# Each dispatch on a mesh over which the experts do not divide, and each mesh: places, heads and dense layers split.
SPLITS = [("expert=4", dispatch) for dispatch in ("replicated", "gather", "all_to_all")]
SPLITS += [("tensor=4", "replicated"), ("expert=2,tensor=2", "gather"), ("data=2,expert=3", "all_to_all")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of the family, which is known as long as these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "made_up", MADE_UP)
        folder = tmp_path_factory.mktemp("made_up") / "source"
        write_random_folder(folder, CONFIG, "float32", seed=1)
        yield folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> OneDevice:
    return on_one_device(str(folder), expert_backend="blocked")


def test_it_loads_and_decodes_with_every_backend(folder: Path) -> None:
    expected = None
    for backend in ("dense", "blocked", "native", "ragged"):
        model = moejax.load(folder, dtype="float32", expert_backend=backend)
        assert model.config == CONFIG
        logits = moejax.logits(model, PROMPTS)
        expected = expected or logits
        for one, other in zip(logits, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
    result = moejax.decode(model, PROMPTS, max_tokens=8, ignore_eos=True, return_routed_experts=True)[0]
    assert result.routed_experts is not None and result.routed_experts.shape == (10, 2, 2)  # two layers have experts
    assert np.array(result.stats.expert_rows).shape == (2, 6)


def test_each_of_its_weights_counts(folder: Path) -> None:
    """A weight that the forward pass forgot would change nothing."""
    model = moejax.load(folder, dtype="float32", expert_backend="dense")
    before = moejax.logits(model, PROMPTS)[1]
    for path in ("attention.q_bias", "attention.q_norm", "mlp.gate", "mlp.up", "mlp.down"):
        params = dict(model.params)
        rng = np.random.default_rng(0)
        params[f"layers.0.{path}"] = jax.tree.map(
            lambda array, rng=rng: array + rng.standard_normal(array.shape).astype(np.float32),
            params[f"layers.0.{path}"],
        )
        changed = dataclasses.replace(model, params=params)
        assert np.abs(moejax.logits(changed, PROMPTS)[1] - before).max() > 1e-3, path


@pytest.mark.parametrize(("mesh", "dispatch"), SPLITS)
def test_meshes_compute_what_one_device_computes(folder: Path, reference: OneDevice, mesh: str, dispatch: str) -> None:
    """6 experts on 4 devices leave two of eight places empty."""
    model = moejax.load(folder, dtype="float32", mesh=mesh, dispatch=dispatch, expert_backend="blocked")
    compared = compare_model(reference, model)
    assert compared.passed and compared.logits.max_abs <= FLOAT32_TOLERANCE


def test_it_is_converted_both_ways(folder: Path, tmp_path: Path) -> None:
    converted, back = tmp_path / "orbax", tmp_path / "back"
    assert moejax.convert(folder, converted, verify_logits=True).logits is not None
    moejax.convert(converted, back)
    source = {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}
    returned = {name: array for file in back.glob("*.safetensors") for name, array in load_file(file).items()}
    assert source.keys() == returned.keys() and "decoder.0.query.offset" in source
    for name, array in source.items():
        np.testing.assert_array_equal(returned[name], array)


def test_info_counts_its_parameters(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = parameters_of(CONFIG)
    assert found["family"] == "made_up"
    assert found["parameters"] == {"total": counts.total, "active": counts.active, "per_expert": counts.per_expert}
    by_hand = sum(int(np.prod(weight.shape)) * (weight.experts or 1) for weight in weights_of(CONFIG))
    assert counts.total == by_hand == found["weights"]["bytes"] // 4
    assert counts.per_expert == 3 * 32 * 24


def test_splits_are_compared(folder: Path) -> None:
    rows = moejax.compare_meshes(folder, 4, "h100-sxm", batch_size=1, dtype="float32")
    usable = [row for row in rows if row.why_not is None]
    assert {str(row.split.mesh) for row in usable} >= {"data=1,expert=4,tensor=1", "data=1,expert=1,tensor=4"}
    one = moejax.compare_meshes(folder, 1, "h100-sxm", batch_size=1, dtype="float32")[0]
    assert one.footprint is not None and one.footprint.weights == 4 * parameters_of(CONFIG).total


def test_verify_takes_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(folder), "--mesh", "expert=2", "--mesh", "tensor=2"]) == 0
    assert capsys.readouterr().out.count("replicated") == 2
