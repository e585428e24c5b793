"""What is known of Mixtral 8x7B on real devices, from the plainest arithmetic: the roofline has to agree."""

import dataclasses
import math

import pytest

from moejax import MeshRow, compare_meshes
from moejax._sharding import MeshConfig
from moejax._sharding.collectives import wire_elements
from moejax.planning.crossovers import gather_crossovers
from moejax.planning.hardware import Hardware, Link
from moejax.planning.hardware_file import load_hardware
from moejax.planning.ranking import best
from tests.messages import refuses, says

MIB = 2**20
WEIGHTS = 2 * 46_702_792_704  # bytes, two for each parameter


def rows(devices: int, hardware: str | Hardware, batch: int = 1, **options) -> dict[str, MeshRow]:
    found = compare_meshes("mixtral-8x7b", devices, hardware, batch_size=batch, software="ideal", **options)
    return {row.label: row for row in found}


@pytest.mark.parametrize(
    ("name", "mib"), [("h200", 143_771), ("h100-sxm", 81_559), ("a100-80gb", 81_920), ("l40s", 46_068)]
)
def test_memory_is_what_the_driver_reports(name: str, mib: int) -> None:
    assert load_hardware(name).memory_bytes == mib * MIB


def test_batch_one_cannot_pass_188_tokens_per_second_on_one_h200() -> None:
    (row,) = rows(1, "h200", context=0).values()
    assert row.tokens_per_second_per_request == pytest.approx(188, rel=0.01)
    assert row.decode and row.decode.weight_bytes == pytest.approx(25.5e9, rel=0.001)
    assert row.decode.kv_bytes == 0


@pytest.mark.parametrize(("batch", "gigabytes"), [(1, 25.5), (4, 65), (8, 84), (16, 92), (32, 93)])
def test_bytes_read_per_step(batch: int, gigabytes: float) -> None:
    (row,) = rows(1, "h200", batch, context=0).values()
    assert row.decode and row.decode.weight_bytes / 1e9 == pytest.approx(gigabytes, abs=0.55)


def test_it_does_not_fit_one_h100_and_the_answer_says_by_how_much() -> None:
    (row,) = rows(1, "h100-sxm").values()
    assert not row.fits and row.footprint and row.footprint.weights == WEIGHTS
    usable = int(81_559 * MIB * 0.9)
    assert row.over_bytes == row.footprint.total - usable > 16.4e9
    says(str(row.why_not), "93.8 GB", "77.0 GB", "16.8 GB")
    assert row.largest_batch == 0


def test_it_does_not_fit_two_v100() -> None:
    found = rows(2, "v100-32gb", dtype="float16")
    assert found and not any(row.fits for row in found.values())
    nearest = min(found.values(), key=lambda row: row.over_bytes)
    says(str(nearest.why_not), "46.9 GB", "30.7 GB", "16.3 GB")


@pytest.mark.parametrize(
    ("devices", "name", "dtype", "largest"),
    [(4, "v100-32gb", "float16", 64), (2, "h100-sxm", "bfloat16", 128), (1, "h200", "bfloat16", 128)],
)
def test_it_fits(devices: int, name: str, dtype: str, largest: int) -> None:
    """The largest batch follows from the bytes that weights leave, 128 KiB per token and 2,048 tokens a sequence."""
    row = best(rows(devices, name, dtype=dtype).values(), "latency")
    assert row and row.largest_batch == largest and row.footprint
    free = row.usable_bytes * devices - WEIGHTS
    per_sequence = 128 * 1024 * 2048
    assert largest <= free / per_sequence < 4 * largest


def test_a_v100_computes_in_no_bfloat16() -> None:
    with refuses(ValueError, "bfloat16", "dtype=float16 or float32"):
        rows(4, "v100-32gb")


@pytest.mark.parametrize(("devices", "read"), [(4, (0.5, 8 / 7)), (8, (0.25, 1.0))])
@pytest.mark.parametrize("name", ["h100-sxm", "h200", "a100-80gb"])
def test_tensor_beats_expert_at_batch_one(name: str, devices: int, read: tuple[float, float]) -> None:
    found = rows(devices, name)
    tensor, expert = found[f"tensor={devices}"].decode, found[f"expert={devices} replicated"].decode
    assert tensor and expert and tensor.seconds < 0.75 * expert.seconds
    assert (tensor.experts_read, expert.experts_read) == pytest.approx(read)
    assert (
        min(found.values(), key=lambda row: row.decode.seconds if row.decode else math.inf).label == f"tensor={devices}"
    )


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_expert_approaches_tensor_under_replicated_and_never_passes_it(devices: int) -> None:
    behind = []
    for batch in (1, 2, 4, 8, 16, 32, 64):
        found = rows(devices, "h200", batch)
        tensor, expert = found[f"tensor={devices}"], found[f"expert={devices} replicated"]
        assert tensor.decode and expert.decode and tensor.prefill and expert.prefill
        assert expert.decode.seconds >= tensor.decode.seconds * (1 - 1e-9)
        assert expert.prefill.seconds >= tensor.prefill.seconds * (1 - 1e-9)
        behind.append(expert.decode.expert_bytes / tensor.decode.expert_bytes - 1)
    assert behind == sorted(behind, reverse=True)
    assert behind[3] > 0.02 and all(0 <= one <= 0.02 for one in behind[4:])


def layer_bytes(row: MeshRow, phase: str) -> float:
    """What a device sends per layer, by rings."""
    sent = [
        float(wire_elements(one, row.split.mesh.shape)) * 2
        for one in getattr(row, phase).collectives
        if one.scope in ("attention", "moe") and one.dtype == "bfloat16"
    ]
    return sum(sent) / 32


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_gather_moves_half_of_the_bytes_of_replicated(devices: int) -> None:
    """Per layer, without tensor, where the batch divides; an ideal ragged exchange moves 2 A / e of them at most."""
    found = rows(devices, "h200", 8)
    sent = {
        name: layer_bytes(found[f"expert={devices} {name}"], "decode") for name in ("replicated", "gather", "not built")
    }
    assert sent["gather"] == pytest.approx(sent["replicated"] / 2)
    assert sent["not built"] == pytest.approx(min(1, 2 / devices) * sent["gather"])


def slow(bandwidth: float) -> Hardware:
    """H100s whose links are that slow."""
    hardware = load_hardware("h100-sxm")
    return dataclasses.replace(hardware, link=Link(bandwidth=bandwidth, latency=1e-6, launch=4e-6))


def test_gather_wins_prefill_on_slow_links_and_loses_decode_at_batch_one() -> None:
    found = rows(8, slow(10e9), 8)
    prefills = [found[f"expert=8 {name}"].prefill for name in ("gather", "replicated")]
    assert prefills[0] and prefills[1] and prefills[0].seconds < 0.6 * prefills[1].seconds
    alone = rows(8, slow(10e9), 1)
    steps = [alone[f"expert=8 {name}"].decode for name in ("gather", "replicated")]
    assert steps[0] and steps[1] and steps[0].seconds > 1.1 * steps[1].seconds


def test_the_crossover_of_gather_and_replicated_is_where_they_are_equal() -> None:
    hardware = load_hardware("h100-sxm")
    found = compare_meshes("mixtral-8x7b", 8, hardware, batch_size=[1, 32], software="ideal")
    crossovers = {
        (one.workload.batch_size, one.phase): one.bandwidth
        for one in gather_crossovers(found, hardware)
        if one.mesh == MeshConfig(expert=8)
    }
    assert crossovers[1, "decode"] is None  # padded to eight rows, gather sends more
    assert crossovers[32, "prefill"] == math.inf  # it sends less, and waits for fewer hops
    speed = crossovers[32, "decode"]
    assert hardware.link and speed is not None and 1e9 < speed < hardware.link.bandwidth
    for factor, gather_wins in ((0.99, True), (1.01, False)):
        link = dataclasses.replace(hardware.link, bandwidth=factor * speed)
        there = rows(8, dataclasses.replace(hardware, link=link), 32)
        gather, replicated = there["expert=8 gather"].decode, there["expert=8 replicated"].decode
        assert gather and replicated and (gather.seconds < replicated.seconds) == gather_wins


def test_a_ragged_exchange_is_shown_and_never_recommended() -> None:
    found = compare_meshes("mixtral-8x7b", 8, "l40s", batch_size=[32], objective="ttft")
    ragged = [row for row in found if not row.built]
    assert [row.label for row in ragged] == ["expert=8 not built"] and ragged[0].why_not == "not built"
    for objective in ("latency", "throughput", "ttft", "memory"):
        winner = best(found, objective)
        assert winner and winner.built
