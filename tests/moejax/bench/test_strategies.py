"""The table of strategies: its closed forms against the declared parameters, and how a mesh is asked for."""

import pytest

from moejax._sharding import MeshConfig, bytes_per_device
from moejax.bench.strategies import count_strategies, meshes_of, strategy_name
from moejax.bench.works import Work
from moejax.families.table import named_configs, parameters_of
from moejax.model.structure import make_parallel, make_structure
from tests.messages import refuses

MIXTRAL = named_configs()["mixtral-8x7b"]
WORK = Work(batch_size=8, input_len=16, output_len=2)


@pytest.mark.parametrize("dispatch", ["replicated", "gather"])
@pytest.mark.parametrize("mesh", ["tensor=8", "expert=8", "expert=4,tensor=2", "data=2,expert=4"])
def test_weights_per_device_are_those_that_the_model_declares(mesh: str, dispatch: str) -> None:
    config = MeshConfig.parse(mesh)
    (row,) = count_strategies(MIXTRAL, [mesh], [WORK], "bfloat16", dispatch)
    parallel = make_parallel(MIXTRAL, config.abstract(), dispatch)
    placements = make_structure(MIXTRAL, "blocked", "bfloat16", parallel).placements()
    assert row["weight_bytes_per_device"] == bytes_per_device(placements)


def test_intra_and_inter_expert_move_the_same_when_replicated() -> None:
    """docs/parallelism.md: 2 (G - 1) / G of the activations, in attention and in the MoE layer, whatever the axis."""
    intra, inter, hybrid = count_strategies(MIXTRAL, meshes_of(["all"], 4), [WORK], "bfloat16", "replicated")
    assert [row["strategy"] for row in (intra, inter, hybrid)] == ["intra-expert", "inter-expert", "hybrid"]
    sent = {row["works"][0]["decode_step"]["wire_bytes_per_device"] for row in (intra, inter, hybrid)}
    activations = 8 * MIXTRAL.embed_dim * 2
    layers = 2 * MIXTRAL.num_layers + 1  # and the embedding
    (only,) = sent
    assert only >= layers * 2 * 3 / 4 * activations
    assert only - layers * 2 * 3 / 4 * activations < 1000  # choosing tokens


def test_what_the_busiest_device_reads_is_what_sets_the_strategies_apart() -> None:
    """At batch 1, 1/2 expert with tensor=4 and 8/7 with expert=4, in every layer (docs/performance-model.md)."""
    one = Work(batch_size=1, input_len=16, output_len=2)
    intra, inter, hybrid = count_strategies(MIXTRAL, meshes_of(["all"], 4), [one], "bfloat16", "replicated")
    read = [row["works"][0]["decode_step"]["weight_bytes_read"] for row in (intra, inter, hybrid)]
    expert = 2 * MIXTRAL.num_layers * parameters_of(MIXTRAL).per_expert
    assert read[1] - read[0] == pytest.approx((8 / 7 - 2 / 4) * expert)
    assert read[2] - read[0] == pytest.approx((10 / 7 / 2 - 2 / 4) * expert)
    everything = count_strategies(
        MIXTRAL, ["expert=4"], [Work(batch_size=500, input_len=1, output_len=2)], "bfloat16", "gather"
    )
    (row,) = everything
    table = 2 * MIXTRAL.vocab_size * MIXTRAL.embed_dim  # the embedding is not read, but for a row each
    assert row["works"][0]["decode_step"]["weight_bytes_read"] == pytest.approx(row["weight_bytes_per_device"] - table)


def test_a_batch_that_does_not_divide_is_padded_and_said() -> None:
    work = Work(batch_size=3, input_len=16, output_len=2)
    (row,) = count_strategies(MIXTRAL, ["expert=4"], [work], "bfloat16", "gather")
    assert row["works"][0]["padded_rows"] == 1


@pytest.mark.parametrize("devices", [None, 2, 5])
def test_all_needs_devices_for_a_hybrid(devices: int | None) -> None:
    with refuses(ValueError, "--mesh all", "--simulate-devices", f"got {devices}"):
        meshes_of(["all"], devices)


def test_names_of_strategies() -> None:
    assert meshes_of(["tensor=2", "all", "tensor=2"], 4) == ["tensor=2", "tensor=4", "expert=4", "expert=2,tensor=2"]
    assert strategy_name(MeshConfig(data=4)) == "data parallel"
