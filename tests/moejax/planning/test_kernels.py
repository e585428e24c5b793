"""The terms of kernels against loops written out by hand; each coefficient, doubled, is noticed."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from moejax import compare_meshes
from moejax._sharding import MeshConfig
from moejax._sharding.collectives import Collective
from moejax.moe.split import make_rules
from moejax.planning import costs
from moejax.planning.calls import ProgramCall
from moejax.planning.compare import make_plan
from moejax.planning.costs import Setting, predict_call
from moejax.planning.hardware_file import load_hardware
from moejax.planning.kernels import (
    BetweenTerms,
    DeviceLoad,
    DeviceRates,
    ExpertTerms,
    ProductTerms,
    PromptTerms,
    Shape,
    SoftwareKernels,
    StepTerms,
    overlapped,
)
from moejax.planning.links import exchange_seconds
from moejax.planning.routing import RoutingModel

DEVICE = DeviceRates(bandwidth=7e9, rate=11e9, cache_bytes=0)
PRODUCT = ProductTerms(fixed=3e-6, bandwidth=0.8, rate=0.6, overlap=2.0)
STEP = StepTerms(fixed=5e-6, bandwidth=0.7, queries=13.0)
PROMPT = PromptTerms(fixed=4e-6, rate=0.5, copies=3.0)
BETWEEN = BetweenTerms(fixed=6e-6, copies=9.0)
EXPERTS = ExpertTerms(
    fixed=2e-6,
    bandwidth=0.9,
    overlap=1.7,
    narrow=3.0,
    copies=0.4,
    per_token=2e-8,
    per_expert=3e-8,
    elsewhere=0.3,
    again=0.2,
    cached=1.5,
    tiles={4: 0.3, 16: 0.8},
)
SHAPE = Shape(experts=3, inputs=24, width=40)
ROWS = np.array([[0, 5, 17], [9, 0, 0]])  # of three experts, in two samples
TOKENS, CHOSEN, ITEM = 20, 2, 2


def layer_seconds(terms: ExpertTerms, *, resident: bool = False, cache: float = 0.0) -> float:
    """One layer by loops: the mean of each quantity over samples, then the formula in words."""
    expert = 3 * SHAPE.inputs * SHAPE.width * ITEM
    active = rows = again = 0.0
    filled = dict.fromkeys(terms.tiles, 0.0)
    for sample in ROWS:
        for count in sample:
            active += (count > 0) / len(ROWS)
            rows += count / len(ROWS)
            for tile in filled:
                filled[tile] += math.ceil(count / tile) * tile / len(ROWS)
            again += max(0, math.ceil(count / max(filled)) - 1) / len(ROWS)
    read = active * expert + terms.again * again * max(0.0, expert - cache)
    reading = read / (DEVICE.bandwidth * terms.bandwidth) / (terms.cached if resident and read <= cache else 1.0)
    by_tile = {tile: filled[tile] / share for tile, share in terms.tiles.items()}
    used = min(by_tile.values())
    if terms.by_tokens:
        used = by_tile[min(by_tile) if TOKENS <= SHAPE.experts else max(by_tile)]
    computing = used * 2 * 3 * SHAPE.inputs * (SHAPE.width + terms.narrow) / DEVICE.rate
    moved = terms.copies * rows * (2 * SHAPE.inputs + 3 * SHAPE.width) * 2
    moved += terms.elsewhere * (TOKENS * CHOSEN - rows) * SHAPE.inputs * 2
    together = (reading**terms.overlap + computing**terms.overlap) ** (1 / terms.overlap)
    fixed = terms.fixed + TOKENS * terms.per_token + SHAPE.experts * terms.per_expert
    return fixed + together + moved / DEVICE.bandwidth


def predicted_layer(terms: ExpertTerms, *, resident: bool = False, cache: float = 0.0) -> float:
    load = DeviceLoad.of(TOKENS, CHOSEN, ROWS, terms.tiles)
    return terms.spent(DEVICE._replace(cache_bytes=cache), SHAPE, load, ITEM, resident=resident).seconds


VARIANTS: list[dict[str, Any]] = [
    {},
    {"cache": 1e9},
    {"resident": True, "cache": 1e9},
    {"resident": True, "cache": 10.0},
]


@pytest.mark.parametrize("by_tokens", [False, True])
@pytest.mark.parametrize("how", VARIANTS, ids=str)
def test_a_layer_of_experts_takes_what_loops_say(how: dict[str, Any], by_tokens: bool) -> None:
    terms = dataclasses.replace(EXPERTS, by_tokens=by_tokens)
    assert predicted_layer(terms, **how) == pytest.approx(layer_seconds(terms, **how), rel=1e-12)


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(ExpertTerms) if one.name != "by_tokens"])
def test_each_term_of_experts_counts(name: str) -> None:
    """Doubled, it changes what is predicted, and the loops agree on by how much."""
    value = getattr(EXPERTS, name)
    doubled = {tile: 2 * share for tile, share in value.items()} if name == "tiles" else 2 * value
    terms = dataclasses.replace(EXPERTS, **{name: doubled})
    how = {"resident": True, "cache": 1e9} if name == "cached" else {}
    assert predicted_layer(terms, **how) != predicted_layer(EXPERTS, **how)
    assert predicted_layer(terms, **how) == pytest.approx(layer_seconds(terms, **how), rel=1e-12)


def test_a_skewed_load_pays_for_the_largest_expert() -> None:
    even, skewed = (DeviceLoad.of(64, 1, np.array([rows]), (16,)) for rows in ([16] * 4, [61, 1, 1, 1]))
    terms = dataclasses.replace(EXPERTS, tiles={16: 0.5})
    assert even.filled[16] == 64 and skewed.filled[16] == 64 + 3 * 16
    assert terms.spent(DEVICE, SHAPE, skewed, 2).computing > terms.spent(DEVICE, SHAPE, even, 2).computing


def test_overlap_lies_between_the_sum_and_the_longer() -> None:
    assert overlapped(3.0, 4.0, 1) == pytest.approx(7) and overlapped(3.0, 4.0, 2) == pytest.approx(5)
    assert overlapped(3.0, 4.0, 100) == pytest.approx(4, rel=1e-6) and overlapped(0.0, 4.0, 2) == 4
    assert overlapped(0.0, 0.0, 2) == 0


def test_the_others_take_what_is_written_out() -> None:
    reading, computing = 1000 / (7e9 * 0.8), 5000 / (11e9 * 0.6)
    assert PRODUCT.spent(DEVICE, 1000, 5000, 3).seconds == pytest.approx(3 * 3e-6 + math.hypot(reading, computing))
    assert STEP.spent(DEVICE, 1000, 10).seconds == pytest.approx(5e-6 + 1000 / (7e9 * 0.7) + 13 * 10 / 7e9)
    assert PROMPT.spent(DEVICE, 5000, 10).seconds == pytest.approx(4e-6 + 5000 / (11e9 * 0.5) + 3 * 10 / 7e9)
    assert BETWEEN.spent(DEVICE, 10).seconds == pytest.approx(6e-6 + 9 * 10 / 7e9)


def test_the_terms_of_shapes_that_were_not_tuned() -> None:
    other = dataclasses.replace(EXPERTS, bandwidth=0.1)
    parts = {"product": PRODUCT, "between": BETWEEN, "step": STEP, "prompt": PROMPT}
    kernels = SoftwareKernels(**parts, experts=EXPERTS, untuned=other, tuned=frozenset({(3, 40)}))  # type: ignore[arg-type]
    assert kernels.experts_for(SHAPE) is EXPERTS
    assert kernels.experts_for(dataclasses.replace(SHAPE, width=41)) is other
    assert dataclasses.replace(kernels, untuned=None).experts_for(dataclasses.replace(SHAPE, width=41)) is EXPERTS


@pytest.mark.parametrize(("width", "batch"), [(1, 4), (64, 4)])
def test_a_call_is_the_sum_of_its_kernels(width: int, batch: int) -> None:
    """A decode step and a part of a prefill, on tensor=2, from sizes alone."""
    plan = make_plan("mixtral-8x7b", "h200", software="vllm")
    config, hardware = plan.config, plan.hardware
    kernels, device = hardware.kernels("vllm", "bfloat16"), hardware.device("bfloat16")
    assert kernels
    rules = make_rules(config, MeshConfig(tensor=2), "replicated")
    setting = Setting(
        config=config, rules=rules, dispatch="replicated", hardware=hardware, routing=plan.routing, software="vllm"
    )
    call = ProgramCall(
        sequences=batch, width=width, requests=batch, tokens=width, positions=128, visited=90, chooses=True
    )
    tokens, d, layers = batch * width, 4096, 32
    heads, kv_heads, head_dim, ff, vocab = 16, 4, 128, 7168, 16_000
    attention = d * heads * head_dim * 2 + 2 * d * kv_heads * head_dim + d * 8 + 2 * d
    dense = (d * heads * head_dim * 2 + 2 * d * kv_heads * head_dim + d * 8) * tokens * 2
    cache = 2 * batch * 128 * kv_heads * head_dim * 2
    queries, keys = tokens * heads * head_dim * 2, tokens * kv_heads * head_dim * 2
    flops = 2 * 2 * tokens * heads * head_dim * 90
    attend = kernels.step.spent(device, cache, 2 * queries)
    if width > 1:
        attend = kernels.prompt.spent(device, flops, 2 * queries + 4 * keys)
    shape = Shape(experts=8, inputs=d, width=ff)
    load = DeviceLoad.of(tokens, 2, RoutingModel(8, 2).busiest(1, tokens), kernels.experts_for(shape).tiles)
    expected = kernels.product.spent(device, layers * attention * 2, layers * dense, 3 * layers).seconds
    expected += layers * kernels.between.spent(device, tokens * d * 2).seconds
    expected += layers * attend.seconds
    expected += layers * kernels.experts_for(shape).spent(device, shape, load, 2).seconds
    head = (vocab * d + d + tokens * d) * 2
    expected += kernels.product.spent(device, head, 2 * batch * vocab * d).seconds
    found = predict_call(setting, call, "bfloat16")
    assert found.seconds - found.communication_seconds == pytest.approx(expected, rel=1e-9)
    curve = hardware.collective_seconds("vllm", "all-reduce", 2, tokens * d * 2)
    assert curve and found.communication_seconds == pytest.approx(65 * curve, rel=0.05)  # and the choice of tokens


def test_a_measured_collective_is_split_into_what_its_size_does_not_change_and_the_rest() -> None:
    hardware = load_hardware("h200")
    found = compare_meshes("mixtral-8x7b", 8, hardware, batch_size=128, software="trtllm")
    row = next(row for row in found if row.label == "tensor=8")
    assert row.decode and row.decode.latency_seconds > 0 and row.decode.bandwidth_seconds > 0
    across = compare_meshes("mixtral-8x7b", 16, hardware, batch_size=128, software="trtllm")
    ideal = compare_meshes("mixtral-8x7b", 16, hardware, batch_size=128, software="ideal")
    rows = [next(row for row in some if row.label == "tensor=16").decode for some in (across, ideal)]
    assert rows[0] and rows[1]  # over several nodes nothing was measured: rings
    assert rows[0].communication_seconds == pytest.approx(rows[1].communication_seconds)


@pytest.mark.parametrize("name", ["QUERY_COPIES", "KEY_COPIES"])
def test_what_attention_moves_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, name, 2 * getattr(costs, name))
    with pytest.raises(AssertionError):
        test_a_call_is_the_sum_of_its_kernels(64, 4)


@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "reduce-scatter", "all-to-all"])
def test_collectives_take_what_their_library_was_measured_to(kind: Any) -> None:
    hardware = load_hardware("h200")
    library = "vllm" if kind == "all-reduce" else "nccl"
    for elements in (64, 2**20):
        one = Collective(kind=kind, axes=("tensor",), elements=elements, dtype="bfloat16", in_loop=False, scope="moe")
        latency, bandwidth = exchange_seconds([one, one], MeshConfig(tensor=4), hardware, "vllm")
        curve = {size: hardware.collective_seconds(library, kind, 4, size) for size in (1, 2 * elements)}
        assert latency == pytest.approx(2 * min(curve.values()))  # type: ignore[type-var]
        assert latency + bandwidth == pytest.approx(2 * curve[2 * elements])  # type: ignore[operator]
