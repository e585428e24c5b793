"""`mesh="auto"`: the split that a comparison for the devices here ranks first, or a refusal with the GB."""

from dataclasses import dataclass, replace

import jax
import pytest

import moejax
from moejax import _sharding as sharding
from moejax import compare_meshes
from moejax._sharding import DeviceMemory
from moejax.checkpoint import open_checkpoint
from moejax.families.table import named_config
from moejax.planning.auto import auto_split, check_split, visible_hardware
from moejax.planning.hardware_file import load_hardware
from moejax.planning.ranking import best
from tests.messages import refuses, says

MIXTRAL = named_config("mixtral-8x7b")
GIB = 2**30


@dataclass(frozen=True)
class Device:
    """What of a JAX device the choice looks at."""

    device_kind: str
    platform: str
    process_index: int = 0


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> DeviceMemory:
    """Each device has 60 GiB that JAX may take."""
    found = DeviceMemory(device="device", total_bytes=60 * GIB, free_bytes=60 * GIB)
    monkeypatch.setattr(sharding, "device_memory", lambda devices: found)
    return found


def test_the_file_is_chosen_by_the_kind_of_device(memory: DeviceMemory) -> None:
    found, said = visible_hardware([Device("NVIDIA H200", "gpu")] * 4)
    assert said == "figures of h200"
    assert found == replace(load_hardware("h200"), memory_bytes=memory.total_bytes, devices_per_node=4)


def test_an_unknown_kind_is_an_assumption_that_is_told(memory: DeviceMemory) -> None:
    found, said = visible_hardware([Device("NVIDIA X900", "gpu")])
    assert found.name == "h100-sxm" and found.memory_bytes == memory.total_bytes
    says(said, "'NVIDIA X900'", "h100-sxm")
    assert visible_hardware([Device("TPU v4", "tpu")])[0].name == "cpu"


def test_it_is_what_the_comparison_ranks_first(memory: DeviceMemory) -> None:
    devices = [Device("NVIDIA H100 80GB HBM3", "gpu")] * 4
    split = auto_split(MIXTRAL, "bfloat16", 4096, "auto", devices)
    hardware, _ = visible_hardware(devices)
    winner = best(compare_meshes(MIXTRAL, 4, hardware, batch_size=1, usable_fraction=1.0), "latency")
    assert winner and split == replace(winner.split, remark=split.remark)
    assert str(split.mesh) == "data=1,expert=1,tensor=4"
    assert split.remark is not None
    says(split.remark, "data=1,expert=1,tensor=4", "replicated", "0.50 instead of 0.71", "expert=2,tensor=2 replicated")
    says(split.remark, "one sequence", "2,048", "h100-sxm")


def test_the_batch_decides(memory: DeviceMemory) -> None:
    """On slow links one sequence shares each expert's reads, many are split over data and exchange nothing."""
    config, devices = replace(MIXTRAL, num_layers=8), [Device("cpu", "cpu")] * 4
    one, many = (auto_split(config, "float16", 4096, "auto", devices, batch_size=size) for size in (1, 32))
    assert (str(one.mesh), str(many.mesh)) == ("data=1,expert=1,tensor=4", "data=4,expert=1,tensor=1")
    assert many.remark is not None
    says(many.remark, "32 sequences", "2,048")


def test_a_dispatch_that_was_named_is_the_only_one_ranked(memory: DeviceMemory) -> None:
    devices = [Device("NVIDIA H200", "gpu")] * 4
    for dispatch in ("gather", "all_to_all"):
        split = auto_split(MIXTRAL, "bfloat16", 4096, dispatch, devices)
        assert split.dispatch == dispatch and split.mesh.expert > 1
        others = [name for name in ("gather", "all_to_all", "replicated") if name != dispatch]
        assert split.remark is not None and not any(name in split.remark for name in others)
    assert auto_split(MIXTRAL, "bfloat16", 4096, "replicated", devices).dispatch == "replicated"
    assert auto_split(replace(MIXTRAL, num_layers=1), "bfloat16", 4096, "gather", devices[:1]).dispatch == "gather"
    with pytest.raises(ValueError, match="unknown dispatch 'gathr'"):
        auto_split(MIXTRAL, "bfloat16", 4096, "gathr", devices)
    with pytest.raises(ValueError, match="unknown dispatch 'gathr'"):
        check_split(MIXTRAL, "auto", "gathr")
    odd = replace(MIXTRAL, num_experts=2)
    with refuses(ValueError, "experts is 2", "expert = 3"):
        auto_split(odd, "bfloat16", 4096, "gather", devices[:3])


def test_a_model_that_fits_no_split_is_refused_with_the_gb_missing(memory: DeviceMemory) -> None:
    with refuses(ValueError, "2 devices", "NVIDIA A100 SXM, 80 GB", "tensor=2", "93.8 GB", "64.4 GB", "29.4 GB"):
        auto_split(MIXTRAL, "float32", 4096, "auto", [Device("NVIDIA A100-SXM4-80GB", "gpu")] * 2)


def test_a_model_that_divides_over_no_split_but_data_takes_data(memory: DeviceMemory) -> None:
    config = replace(MIXTRAL, num_layers=1, num_experts=2)
    assert auto_split(config, "bfloat16", 64, "auto", [Device("NVIDIA H200", "gpu")] * 3).mesh.data == 3


def test_a_loaded_model_has_the_split_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert jax.device_count() == 8
    caplog.set_level("INFO", logger="moejax")
    model = moejax.load("demo", mesh="auto", dtype="float32", max_seq_len=64)
    expected = auto_split(open_checkpoint("demo").config, "float32", 64, "auto", jax.devices())
    assert (model.mesh, model.dispatch) == (expected.mesh, expected.dispatch)
    assert model.mesh.size == 8
    assert expected.remark in caplog.messages
