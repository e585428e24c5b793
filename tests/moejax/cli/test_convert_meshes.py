"""A converted folder on meshes: the same parameters as from its source, each device reading only its part."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import moejax
from moejax._convert import OrbaxFolder
from moejax._sharding import mesh_config
from moejax.weights import filling
from tests.moejax.cli.several import Starter, end
from tests.moejax.conversion_folders import config_of, weights_of, write_hf

# Not imported: it adds a command, which is for a process of its own.
DECODE = "tests.moejax.cli.orbax_decode", "orbax-decode"
PROMPT = "A list is"  # the one that the command decodes


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint, converted by a process that has 8 devices."""
    assert jax.device_count() == 8
    folder = tmp_path_factory.mktemp("meshes") / "demo"
    moejax.convert("demo", folder)
    return folder


@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        (None, {"expert_backend": "blocked", "dtype": "bf16"}),
        (None, {"expert_backend": "dense", "dtype": "float16", "max_seq_len": 64}),
        ("expert=2,tensor=4", {"dispatch": "replicated"}),
        ("expert=2,tensor=4", {"dispatch": "gather", "expert_backend": "dense"}),
        ("expert=8", {"dispatch": "all_to_all"}),
        ("data=2,tensor=2", {"dispatch": "replicated", "dtype": "auto"}),
    ],
)
def test_parameters_are_those_of_the_source(demo: Path, mesh: str | None, options: dict[str, Any]) -> None:
    models = [moejax.load(source, mesh=mesh, **options) for source in ("demo", demo)]
    assert models[0].params.keys() == models[1].params.keys()
    leaves = (jax.tree_util.tree_leaves_with_path(model.params) for model in models)
    for (path, array), (_, other) in zip(*leaves, strict=True):
        assert array.sharding == other.sharding and array.dtype == other.dtype, path
        for shard, same in zip(array.addressable_shards, other.addressable_shards, strict=True):
            assert np.asarray(shard.data).tobytes() == np.asarray(same.data).tobytes(), path
    assert models[0].max_seq_len == models[1].max_seq_len


def test_decodes_the_same_on_a_mesh(demo: Path) -> None:
    model = moejax.load(demo, mesh="expert=2,tensor=4", dispatch="replicated", dtype="float32")
    single = moejax.load("demo", dtype="float32")
    texts = [moejax.decode(one, PROMPT, max_tokens=16)[0].text for one in (model, single)]
    assert texts[0] == texts[1]


def test_a_device_reads_only_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts of 8 MB, of which each of 2 or 4 devices along `tensor` needs whole chunks."""
    config = config_of(num_hidden_layers=1, num_local_experts=2, hidden_size=1024, intermediate_size=4096)
    moejax.convert(write_hf(tmp_path / "hf", config, weights_of(config, "bfloat16")), tmp_path / "orbax")
    reads: list[tuple[str, int, int]] = []
    read_into = OrbaxFolder.read_into

    def noted(self: OrbaxFolder, name: str, out: np.ndarray, *rest: Any, **options: Any) -> None:
        before = self.read_bytes.total
        read_into(self, name, out, *rest, **options)
        reads.append((name, out.nbytes, self.read_bytes.total - before))

    monkeypatch.setattr(OrbaxFolder, "read_into", noted)
    monkeypatch.setattr(filling, "MOST_THREADS", 1)  # so that what is counted in a call was read by it
    for mesh, parts in (("expert=2,tensor=2", 2), ("tensor=4", 4)):
        reads.clear()
        moejax.load(tmp_path / "orbax", mesh=mesh, dispatch="replicated")
        experts = [read for read in reads if ".experts." in read[0]]
        assert len(experts) == 2 * 3 * parts, "every part of every expert is read once"
        for name, needed, read in experts:
            assert read == needed == 1024 * 4096 * 2 // parts, name


def test_orbax_restores_onto_a_mesh_by_itself(demo: Path) -> None:
    sharding = NamedSharding(mesh_config("expert=2,tensor=4").build(), PartitionSpec("tensor", None))
    item = demo / "weights" / "layers.0.experts.3"
    restored = ocp.PyTreeCheckpointer().restore(
        item, restore_args={key: ocp.ArrayRestoreArgs(sharding=sharding) for key in ("gate", "up", "down")}
    )
    opened = OrbaxFolder.open(demo)
    for key in ("gate", "up", "down"):
        assert restored[key].sharding == sharding
        assert np.array_equal(restored[key], opened.read(f"layers.0.moe.experts.3.{key}"))


def test_two_processes_read_their_own_experts(start: Starter, demo: Path) -> None:
    processes = [start(id, str(demo), "--mesh", "expert=8", command=DECODE) for id in (0, 1)]
    single = moejax.load("demo", dtype="float32")
    tokens = moejax.decode(single, PROMPT, max_tokens=16, ignore_eos=True)[0].token_ids
    first, second = map(end, processes)
    assert first.status == 0, first.err
    assert first.out.splitlines() == ["experts 0 1 2 3", " ".join(map(str, tokens))]
    assert (second.status, second.out, second.err) == (0, "", "")
