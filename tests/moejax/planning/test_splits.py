"""Which dispatches a comparison lists where every device of a group has all experts."""

from dataclasses import replace
from typing import Any

import pytest

from moejax import MeshConfig, ModelConfig, compare_meshes
from moejax._sharding import mesh_shapes
from moejax.families.table import named_configs
from moejax.moe.split import DISPATCHES, can_split
from moejax.planning.compare import make_plan, predict_split
from moejax.planning.models import model_config
from moejax.planning.splits import Split, splits
from moejax.planning.workload import Workload

ODD_HEADS = replace(model_config("mixtral-8x7b"), num_heads=6, num_kv_heads=3, head_dim=128)


def listed(config: ModelConfig, devices: int, dispatch: str = "all") -> dict[MeshConfig, list[str]]:
    found: dict[MeshConfig, list[str]] = {}
    for split, _ in splits(config, devices, dispatch):
        if split.mesh.expert == 1:
            found.setdefault(split.mesh, []).append(split.dispatch)
    return found


@pytest.mark.parametrize("name", [*named_configs(), "odd heads"])
def test_with_expert_1_all_dispatches_are_predicted_alike_and_listed_once(name: str) -> None:
    config = ODD_HEADS if name == "odd heads" else model_config(name)
    plan = make_plan(config, "h100-sxm")
    for devices in (1, 2, 4, 8):
        assert all(names == ["replicated"] for names in listed(config, devices).values())
        for mesh in mesh_shapes(devices):
            if mesh.expert > 1 or not can_split(config, mesh):
                continue
            for batch in (1, 8):
                work = Workload(batch_size=batch, dtype="bfloat16")
                rows = [predict_split(plan, Split(mesh=mesh, dispatch=one, remark=None), work) for one in DISPATCHES]
                assert all((row.decode, row.prefill, row.footprint) == _parts(rows[0]) for row in rows)


def _parts(row: Any) -> tuple[Any, ...]:
    return row.decode, row.prefill, row.footprint


def test_a_dispatch_that_differs_with_expert_1_is_listed_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that leaves attention whole, as gather would if heads were not split over tensor."""
    whole = replace(DISPATCHES["gather"], dense=((),))
    monkeypatch.setitem(DISPATCHES, "gather", whole)
    config = model_config("mixtral-8x7b")
    for mesh, names in listed(config, 4).items():
        assert names == (["replicated", "gather"] if mesh.tensor > 1 else ["replicated"])
    assert set(map(tuple, listed(config, 4, "gather").values())) == {("replicated",), ("gather",)}
    rows = {row.label: row for row in compare_meshes("mixtral-8x7b", 4, "h200", batch_size=1)}
    plain, other = rows["tensor=4"], rows["tensor=4 gather"]
    assert plain.footprint and other.footprint and other.footprint.weights > plain.footprint.weights
