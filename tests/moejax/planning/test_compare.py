"""A comparison: which splits it has, in which order, with which reasons; counts against the report and the forms."""

import dataclasses
import json
import math
from collections import Counter

import pytest

from moejax import compare_meshes
from moejax._sharding import MeshConfig, bytes_per_device, mesh_shapes
from moejax.families.kv_cache import cache_placements
from moejax.families.table import named_config, parameters_of, weights_of
from moejax.moe.split import DISPATCHES, make_rules
from moejax.planning.communication import Tokens, choice_collectives, forward_collectives
from moejax.planning.expert_load import ExpertLoad
from moejax.planning.export import comparison_json, winners
from moejax.planning.hardware_file import load_hardware
from moejax.planning.links import link_of
from moejax.planning.objectives import OBJECTIVES
from moejax.planning.question import Question
from moejax.planning.ranking import SAME, best, busy, equally_good, score
from moejax.planning.reasons import reason
from moejax.planning.workload import Workload
from moejax.runtime.buckets import MAX_SERVED_SEQUENCES
from moejax.serving.settings import EngineSettings
from moejax.weights.counts import weight_placements
from tests.messages import refuses

CONFIG = named_config("mixtral-8x7b")


@pytest.mark.parametrize("devices", [1, 6, 8, 64])
def test_every_split_is_there_once(devices: int) -> None:
    rows = [row for row in compare_meshes(CONFIG, devices, "h200", batch_size=4) if row.built]
    assert {row.split.mesh for row in rows} == set(mesh_shapes(devices))
    for mesh, count in Counter(row.split.mesh for row in rows).items():
        divides = mesh.expert <= 8 and 14336 % mesh.tensor == 0  # devices may have places without an expert
        assert count == (len(DISPATCHES) if mesh.expert > 1 and divides else 1)
        if not divides:
            (row,) = (row for row in rows if row.split.mesh == mesh)
            assert row.why_not and "mesh axis" in row.why_not and row.footprint is None


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_are_in_the_order_of_the_objective(objective: str) -> None:
    rows = [row for row in compare_meshes(CONFIG, 8, "a100-80gb", batch_size=[2, 16], objective=objective) if row.built]
    for batch in (2, 16):
        chosen = [row for row in rows if row.workload.batch_size == batch]
        places = [(bool(row.idle_copies), score(row, objective)) for row in chosen if row.fits]
        alike = len(equally_good(busy(chosen), objective))  # of these the simplest is first
        assert places[alike:] == sorted(places)[alike:] and sorted(places[:alike]) == sorted(places)[:alike]
        assert len(places) > 10
        assert [row.fits for row in chosen] == sorted((row.fits for row in chosen), reverse=True)
        assert best(chosen, objective) == chosen[0]


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("mesh", ["expert=8", "tensor=8", "data=2,expert=2,tensor=2", "data=2,expert=4"])
def test_counts_are_those_of_the_report_and_of_the_closed_forms(mesh: str, dispatch: str) -> None:
    """Bytes of weights and cache as placed array by array, collectives as compiled programs have them."""
    shape = MeshConfig.parse(mesh)
    rows = compare_meshes(CONFIG, 8, "h200", batch_size=3, context=3000, input_len=700, dispatch=dispatch)
    (row,) = (row for row in rows if row.split.mesh == shape and row.built)
    assert row.footprint and row.decode and row.prefill
    rules = make_rules(CONFIG, shape, row.split.dispatch)
    padded = -(-4 // rules.parts("batch")) * rules.parts("batch")
    assert row.footprint.weights == bytes_per_device(weight_placements(weights_of(CONFIG), rules, "bfloat16"))
    assert row.footprint.kv == bytes_per_device(cache_placements(CONFIG, rules, padded, 3072, "bfloat16"))
    step = Tokens(sequences=padded, length=1)
    expected = forward_collectives(CONFIG, rules, row.split.dispatch, step, "bfloat16")
    assert row.decode.collectives == expected + choice_collectives(rules, step)
    prompts = Tokens(sequences=padded, length=768)
    expected = forward_collectives(CONFIG, rules, row.split.dispatch, prompts, "bfloat16")
    assert row.prefill.collectives == expected + choice_collectives(rules, step)
    assert row.prefill.calls == 1


def test_long_prompts_and_many_of_them_take_several_calls() -> None:
    (row,) = compare_meshes(CONFIG, 1, "h200", batch_size=6, context=8192, input_len=5000, usable_fraction=1.0)
    assert row.prefill and row.prefill.calls == 6  # 4 prompts and 2, each 5,000 tokens in parts of 2,048
    once = compare_meshes(CONFIG, 1, "h200", batch_size=1, context=8192, input_len=2000)[0]
    assert once.prefill and once.prefill.calls == 1
    assert row.prefill.flops > 10 * once.prefill.flops


def test_a_phase_adds_up() -> None:
    for row in compare_meshes(CONFIG, 8, "l40s", batch_size=[1, 64], software="ideal"):
        for phase in (row.decode, row.prefill):
            if phase is None:
                continue
            assert phase.seconds == pytest.approx(
                phase.weight_bytes / 864e9
                + phase.kv_bytes / 864e9
                + phase.exposed_compute_seconds
                + phase.latency_seconds
                + phase.bandwidth_seconds
            )
            assert 0 <= phase.exposed_compute_seconds <= phase.compute_seconds == pytest.approx(phase.flops / 362.05e12)
            assert phase.weight_bytes > phase.expert_bytes > 0 and phase.imbalance >= 1 - 1e-9


def test_flops_are_two_per_parameter_that_a_token_uses() -> None:
    """At batch 1 on one device, beside attention over the cache and the embedding, which is looked up."""
    (row,) = compare_meshes(CONFIG, 1, "h200", batch_size=1, context=0)
    used = parameters_of(CONFIG).active - CONFIG.vocab_size * CONFIG.embed_dim - 65 * CONFIG.embed_dim  # norms scale
    assert row.decode and row.decode.flops == pytest.approx(2 * used, rel=1e-9)


def test_rows_say_what_they_are_best_for() -> None:
    rows = compare_meshes(CONFIG, 4, "h200", batch_size=[1, 64], objective="ttft")
    for batch in (1, 64):
        chosen = [row for row in rows if row.workload.batch_size == batch]
        for objective in OBJECTIVES:
            (row,) = (row for row in chosen if objective in row.best_for)
            least = min(score(one, objective) for one in chosen if one.built)
            assert row.built and score(row, objective) <= least + SAME * abs(least)
            assert row.best_for[objective] == reason(row, chosen, objective)
            assert winners(chosen)[objective] == {
                "split": row.label,
                "devices": 4,
                "reason": row.best_for[objective],
            }
    nothing = compare_meshes(CONFIG, 1, "l40s", batch_size=1)
    assert winners(nothing) == {} and not nothing[0].best_for


def test_a_split_that_does_not_fit_is_counted_and_predicted_all_the_same() -> None:
    (small,), (large,) = (compare_meshes(CONFIG, 1, name, batch_size=4) for name in ("l40s", "h200"))
    assert not small.fits and small.decode and small.prefill and large.decode and large.prefill
    assert (small.decode.flops, small.decode.weight_bytes) == (large.decode.flops, large.decode.weight_bytes)
    assert small.prefill.collectives == large.prefill.collectives
    assert small.tokens_per_second_total == 0 and small.ttft_seconds == math.inf


def test_the_largest_batch_is_one_that_a_server_decodes_at_a_time() -> None:
    row = compare_meshes("demo", 1, "h200", batch_size=1)[0]
    assert row.fits and row.footprint and row.largest_batch == MAX_SERVED_SEQUENCES
    EngineSettings(max_batch=MAX_SERVED_SEQUENCES)
    with refuses(ValueError, "--max-batch", "1", "1024", "got 1025"):
        EngineSettings(max_batch=MAX_SERVED_SEQUENCES + 1)


def test_a_row_is_shown_in_a_line() -> None:
    rows = compare_meshes(CONFIG, 4, "h100-sxm", batch_size=1, software="ideal")
    assert repr(rows[0]) == (
        "<MeshRow tensor=4, batch 1; 2.35 ms a step, 425 tokens/s, 8.45 ms to the first, 23.5 GB per device; best for "
        "latency, throughput, ttft, memory>"
    )
    assert max(len(repr(row)) for row in rows) < 160 and len(repr(rows[0].decode)) < 600
    assert any("16.8 GB over>" in repr(row) for row in rows) and any("not built" in repr(row) for row in rows)


def test_an_expert_load_makes_expert_slower_and_leaves_tensor_as_it_is() -> None:
    counts = tuple([450, 350, 50, 50, 30, 30, 20, 20] for _ in range(32))
    load = ExpertLoad(
        model="test", num_layers=32, num_experts=8, experts_per_token=2, tokens=500, counts=tuple(map(tuple, counts))
    )
    even, loaded = (
        {row.label: row for row in compare_meshes(CONFIG, 4, "h200", batch_size=8, expert_load=given)}
        for given in (None, load)
    )
    assert loaded["expert=4 replicated"].load_imbalance == pytest.approx(800 / 250)
    assert even["expert=4 replicated"].load_imbalance == 1 == pytest.approx(loaded["tensor=4"].load_imbalance)
    for name in ("decode", "prefill"):
        imbalance = [getattr(rows["expert=4 replicated"], name).imbalance for rows in (even, loaded)]
        assert imbalance[1] > 1.3 * imbalance[0]
    read = [row.decode.experts_read for row in (even["tensor=4"], loaded["tensor=4"]) if row.decode]
    assert read[1] < read[0]  # popular experts are shared by many tokens
    assert loaded["expert=4 replicated"].ttft_seconds > even["expert=4 replicated"].ttft_seconds


def test_the_load_of_another_model_is_refused() -> None:
    load = ExpertLoad(model="demo", num_layers=4, num_experts=8, experts_per_token=2, tokens=4, counts=((1,) * 8,) * 4)
    with refuses(
        ValueError, "demo", "4 layers, 8 experts, 2 per token", "32 layers, 8 experts, 2 per token", "moejax decode"
    ):
        compare_meshes(CONFIG, 4, "h200", expert_load=load)


def test_devices_of_several_nodes_use_the_network() -> None:
    hardware = load_hardware("h100-sxm")
    mesh = MeshConfig(data=2, expert=4, tensor=4)  # 32 devices, 8 in a node
    assert hardware.network
    assert link_of(("tensor",), mesh, hardware) == hardware.link
    assert link_of(("expert",), mesh, hardware) == hardware.network
    assert link_of(("expert", "tensor"), mesh, hardware) == hardware.network
    assert link_of(("data",), mesh, hardware) == hardware.network
    inside = MeshConfig(data=4, expert=2, tensor=4)
    assert link_of(("expert", "tensor"), inside, hardware) == hardware.link
    assert link_of(("data",), MeshConfig(data=8), hardware) == hardware.link
    uneven = MeshConfig(tensor=3, expert=4)  # the third group of three lies in two nodes
    assert link_of(("tensor",), uneven, hardware) == hardware.network
    with refuses(ValueError, "8 devices", "[network]", "32 devices"):
        link_of(("expert",), mesh, dataclasses.replace(hardware, network=None))


QUESTION = Question(model="mixtral-8x7b", hardware=load_hardware("h100-sxm"))


def test_json_has_every_row_and_nothing_infinite() -> None:
    rows = compare_meshes(CONFIG, 11, "h100-sxm", batch_size=[1, 4], dispatch="gather")
    found = comparison_json(rows, QUESTION)
    read = json.loads(json.dumps(found, allow_nan=False))
    assert len(read["rows"]) == len(rows) and read["winners"] == {"1": {}, "4": {}}
    rows = compare_meshes(CONFIG, 4, "h100-sxm", batch_size=8)
    one = comparison_json(rows, QUESTION)["rows"][0]
    kinds = Counter(entry["kind"] for entry in one["decode"]["collectives"])
    assert kinds["all-reduce"] >= 2 and one["decode"]["collectives"][1]["count"] == 32


def test_too_many_devices_are_refused_at_once() -> None:
    with refuses(ValueError, "devices", "65,536", "got 1e+09"):
        compare_meshes(CONFIG, 10**9, "h100-sxm")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"batch_size": 0}, ("batch_size", "1", "got 0")),
        ({"batch_size": True}, ("batch_size", "1", "got True")),
        ({"batch_size": 1, "input_len": 1.5}, ("input_len", "1", "got 1.5")),
        ({"batch_size": 1, "context": -1}, ("context", "0", "got -1")),
        ({"batch_size": 1, "context": 100}, ("context=100", "input_len=512")),
    ],
)
def test_an_impossible_workload_is_refused(fields: dict, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        Workload(**fields)
    assert str(caught.value).startswith(complaint)
