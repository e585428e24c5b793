"""Hardware files: those that come with moejax, and whatever a user may have written into one."""

import dataclasses
from pathlib import Path

import pytest

from moejax.planning.hardware_file import SHIPPED, load_hardware, shipped_hardware
from moejax.planning.hardware_toml import hardware_toml
from tests.messages import refuses

GOOD = """title = "a device"
memory_bytes = 1000
bandwidth = 10
devices_per_node = 4
[matrix_rate]
float32 = 5.0
[link]
bandwidth = 2
latency = 0
"""
SPEEDS = """[speeds.float32]
project = { 1 = 1.0, 4 = 4.0, 16 = 4.0 }
experts = { 1 = 10.0 }
attend_step = { 2 = 3.0 }
attend_prompt = { 2 = 2.0 }
"""


@pytest.mark.parametrize("name", shipped_hardware())
def test_every_figure_has_its_source(name: str) -> None:
    hardware = load_hardware(name)
    assert hardware.link
    figures = {"memory_bytes", "bandwidth", "devices_per_node", "matrix_rate", "link.bandwidth", "link.latency"}
    if hardware.network:
        figures |= {f"network.{field}" for field in ("bandwidth", "latency", "launch")}
    if hardware.link.launch:
        figures.add("link.launch")
    if hardware.cache_bytes:
        figures.add("cache_bytes")
    if hardware.software:
        figures |= {"collectives", *(f"software.{one}" for one in hardware.software)}
    assert set(hardware.sources) == figures
    assert all(len(source) > 20 for source in hardware.sources.values())
    assert hardware.kinds and hardware.name == name and hardware.layer_overhead == 0


def test_the_kinds_of_devices_are_told_apart() -> None:
    kinds = [kind for name in shipped_hardware() for kind in load_hardware(name).kinds]
    assert len(kinds) == len(set(kinds)) >= 6 and all(kind == kind.lower() for kind in kinds)


@pytest.mark.parametrize("name", shipped_hardware())
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    hardware = dataclasses.replace(load_hardware(name), layer_overhead=1.5e-6, title='a "quoted" \\ title\x7f é')
    path = tmp_path / f"{name}.toml"
    path.write_text(hardware_toml(hardware), encoding="utf-8")
    assert load_hardware(path) == hardware


def test_speeds_lie_on_straight_lines_between_logarithms(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace("[link]", SPEEDS + "[link]"))
    hardware = load_hardware(path)
    found = [hardware.speed("float32", "project", rows) for rows in (0.5, 1, 2, 4, 9, 16, 100)]
    assert found == pytest.approx([1, 1, 2, 4, 4, 4, 4])
    assert hardware.speed("float32", "experts", 7) == 10
    assert dataclasses.replace(hardware, speeds={}).speed("float32", "experts", 7) == 5
    path.write_text(hardware_toml(hardware))
    assert load_hardware(path) == hardware


def test_a_file_of_a_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    hardware = load_hardware(str(path))
    assert (hardware.name, hardware.memory_bytes, hardware.network) == ("mine", 1000, None)
    assert dict(hardware.matrix_rate) == {"float32": 5.0}


@pytest.mark.parametrize(
    ("old", "new", "facts"),
    [
        ("[link]", "[speeds.int8]\n[link]", ("speeds.int8", "bfloat16, float16, float32")),
        ("[link]", "[speeds.float32]\n[link]", ("speeds.float32.project", "missing")),
        (
            "[link]",
            SPEEDS.replace("{ 1 = 10.0 }", "{}") + "[link]",
            ("speeds.float32.experts", "{ 1 = 2e10, 8 = 1e11 }", "got {}"),
        ),
        (
            "[link]",
            SPEEDS.replace("{ 1 = 10", "{ 0 = 10") + "[link]",
            ("speeds.float32.experts", "whole numbers"),
        ),
        (
            "[link]",
            SPEEDS.replace("{ 1 = 10", f"{{ 1{'0' * 5000} = 10") + "[link]",
            ("speeds.float32.experts", "whole numbers"),
        ),
        (
            "[link]",
            SPEEDS.replace("{ 1 = 10.0", "{ 1 = 10.0, 01 = 11.0") + "[link]",
            ("speeds.float32.experts", "row count 1 twice"),
        ),
        (
            "memory_bytes = 1000",
            f"memory_bytes = 0x{'f' * 5000}",
            ("memory_bytes", "1e+24", "thousands of digits"),
        ),
        ("[link]", SPEEDS.replace("10.0", "0") + "[link]", ("speeds.float32.experts.1", "0", "got 0")),
        ("memory_bytes = 1000", "", ("memory_bytes", "missing")),
        ("bandwidth = 2\n", "", ("link.bandwidth", "missing")),
        ("memory_bytes = 1000", "memory_bytes = 0", ("memory_bytes", "1", "got 0")),
        ("memory_bytes = 1000", "memory_bytes = 1e3", ("memory_bytes", "1", "got 1000.0")),
        ("bandwidth = 10", "bandwidth = -1", ("bandwidth", "0", "got -1")),
        ("bandwidth = 10", "bandwidth = 5e-324", ("bandwidth", "0", "1e-12", "1e+24", "got 5e-324")),
        ("bandwidth = 10", f"bandwidth = 1{'0' * 400}", ("bandwidth", "0", "1e-12", "1e+24")),
        ("memory_bytes = 1000", f"memory_bytes = 1{'0' * 400}", ("memory_bytes", "1e+24")),
        ("latency = 0", "latency = 1e308", ("link.latency", "0", "1e-12", "1e+24", "got 1e+308")),
        ("bandwidth = 10", f"bandwidth = {'[' * 20_000}", ("TOML",)),
        ("bandwidth = 10", "bandwidth = nan", ("bandwidth", "got nan")),
        ("bandwidth = 10", "bandwidth = inf", ("bandwidth", "got inf")),
        ("bandwidth = 10", "bandwidth = true", ("bandwidth", "got True")),
        ("bandwidth = 10", 'bandwidth = "fast"', ("bandwidth", "got 'fast'")),
        ("latency = 0", "latency = -0.1", ("link.latency", "0", "got -0.1")),
        (
            "devices_per_node = 4",
            "devices_per_node = 0",
            ("devices_per_node", "1", "got 0"),
        ),
        ("float32 = 5.0", "float33 = 5.0", ("matrix_rate.float33", "'float32'")),
        ("float32 = 5.0", "", ("matrix_rate", "bfloat16, float16, float32", "got {}")),
        ("float32 = 5.0", "float32 = 0", ("matrix_rate.float32", "0", "got 0")),
        (
            "devices_per_node = 4",
            "device_per_node = 4",
            ("device_per_node", "'devices_per_node'"),
        ),
        ('title = "a device"', "title = 3", ("title", "text", "got 3")),
        ('title = "a device"', 'title = "x"\nkinds = "cpu"', ("kinds", "list", "got 'cpu'")),
        ("[link]", "[links]", ("link", "missing")),
        ("[matrix_rate]", "[matrix_rate", ("TOML",)),
        ("[link]", "[efficiency]\nbandwidth = 0.5\n[link]", ("efficiency.matrix_rate", "missing")),
        (
            "[link]",
            "[efficiency]\nbandwidth = 1.5\nmatrix_rate = 1\n[link]",
            ("efficiency.bandwidth", "1", "got 1.5"),
        ),
        (
            "[link]",
            SPEEDS + "[efficiency]\nbandwidth = 0.5\nmatrix_rate = 1\n[link]",
            ("efficiency", "speeds"),
        ),
        (
            "[matrix_rate]\nfloat32 = 5.0",
            "matrix_rate = 5.0",
            ("matrix_rate", "[matrix_rate]", "got 5.0"),
        ),
    ],
)
def test_a_missing_or_impossible_figure_is_named(tmp_path: Path, old: str, new: str, facts: tuple[str, ...]) -> None:
    assert old in GOOD
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with refuses(ValueError, path, *facts) as caught:
        load_hardware(path)
    assert "\n" not in str(caught.value).removeprefix(str(path))


def test_unknown_names_list_the_known_ones() -> None:
    with refuses(ValueError, "'h100'", ", ".join(shipped_hardware()), "'h100-sxm'"):
        load_hardware("h100")
    for asked, meant in (
        *(("H100", "h100-sxm"), ("h100-pcie", "h100-sxm"), ("NVIDIA H200", "h200"), ("H200-SXM", "h200")),
        *(("L40-S", "l40s"), ("l40", "l40s"), ("NVIDIA L40S", "l40s"), ("l40s-pcie", "l40s"), ("A100", "a100-80gb")),
        *(("RTX PRO 6000", "rtx-pro-6000"), ("Tesla V100", "v100-32gb"), ("gb200", "b200")),
    ):
        with refuses(ValueError, f"{asked!r}", "did you mean", f"{meant!r}"):
            load_hardware(asked)
    for asked in ("", "   ", "???"):
        with pytest.raises(ValueError) as caught:
            load_hardware(asked)
        assert "did you mean" not in str(caught.value)
    with refuses(ValueError, "no such file", "a100-80gb"):
        load_hardware("nowhere.toml")
    assert {path.suffix for path in SHIPPED.iterdir()} == {".toml"}


@pytest.mark.parametrize("name", shipped_hardware())
def test_a_name_is_known_in_any_case(name: str) -> None:
    assert load_hardware(name.upper()) == load_hardware(name.title()) == load_hardware(name)


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(hardware_toml(load_hardware("h200")), encoding="utf-8-sig")
    assert dataclasses.replace(load_hardware(str(path)), name="h200") == load_hardware("h200")


MEASURED = """cache_bytes = 100
[software.vllm]
title = "Other 1.0"
all_reduce = "own"
collectives = "nccl"
products = 2
[software.vllm.float32]
product = { fixed = 1e-6, bandwidth = 0.5, rate = 0.5, overlap = 2 }
between = { fixed = 2e-6, copies = 4 }
step = { fixed = 3e-6, bandwidth = 0.5, queries = 1 }
prompt = { fixed = 4e-6, rate = 0.5, copies = 1 }
[software.vllm.float32.experts]
fixed = 5e-6
bandwidth = 0.5
overlap = 2
narrow = 1
copies = 1
per_token = 0
per_expert = 0
elsewhere = 0
tiles = { 16 = 0.5 }
[collectives.own]
all-reduce.2 = { 8 = 1e-6, 80 = 2e-6 }
all-reduce.8 = { 8 = 2e-6 }
[collectives.nccl]
"""


def measured(tmp_path: Path, text: str = MEASURED) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text.partition("\n")[0] + "\n" + GOOD + text.partition("\n")[2])
    return path


def test_measured_terms_are_read_and_found(tmp_path: Path) -> None:
    hardware = load_hardware(measured(tmp_path))
    kernels = hardware.kernels("vllm", "float32")
    assert kernels and kernels.product.bandwidth == 0.5 and kernels.experts.tiles == {16: 0.5}
    assert hardware.kernels("vllm", "bfloat16") is None and hardware.kernels("trtllm", "float32") is None
    assert hardware.device("float32") == (10, 5.0, 100)


def test_collectives_lie_on_their_curves(tmp_path: Path) -> None:
    hardware = load_hardware(measured(tmp_path))
    own = {size: hardware.collective_seconds("own", "all-reduce", 2, size) for size in (1, 8, 80, 800)}
    assert own == pytest.approx({1: 1e-6, 8: 1e-6, 80: 2e-6, 800: 2e-5})
    assert hardware.collective_seconds("own", "all-reduce", 2, 80 / 10**0.5) == pytest.approx(2**0.5 * 1e-6)
    assert hardware.collective_seconds("own", "all-reduce", 3, 8) == 2e-6  # as of the next larger number
    assert hardware.collective_seconds("own", "all-reduce", 9, 8) is None
    assert hardware.collective_seconds("nccl", "all-gather", 2, 8) is None


@pytest.mark.parametrize(
    ("old", "new", "facts"),
    [
        ("bandwidth = 0.5, rate", "bandwidth = 1.6, rate", ("product.bandwidth", "1.5", "1.6")),
        ("overlap = 2 }", "overlap = 0.5 }", ("product.overlap", "between 1 and")),
        ("fixed = 1e-6, ", "", ("product.fixed", "missing")),
        ("queries", "querys", ("querys", "queries")),
        ("{ 16 = 0.5 }", "{ 16 = 0 }", ("experts.tiles.16", "above 0")),
        ("elsewhere = 0\n", "elsewhere = 0\nby_tokens = 1\n", ("by_tokens", "true or false")),
        ('all_reduce = "own"', 'all_reduce = "mine"', ("all_reduce", "own, nccl", "mine")),
        ("products = 2\n", "products = 0\n", ("products", "at least 1")),
        ("products = 2\n", "", ("software.vllm.products", "missing")),
        ("software.vllm.float32", "software.vllm.bfloat16", ("software.vllm.bfloat16", "matrix_rate.bfloat16")),
        ("software.vllm.float32", "software.vllm.int3", ("int3",)),
        ("all-reduce.2", "reduce.2", ("collectives.own.reduce",)),
        ("all-reduce.2", "all-reduce.two", ("all-reduce", "devices")),
        ("{ 8 = 1e-6, 80 = 2e-6 }", "{ 8 = -1 }", ("all-reduce.2.8", "above 0")),
        ("cache_bytes = 100", "cache_bytes = -1", ("cache_bytes", "whole number")),
        ("cache_bytes = 100", "cache_bytes = 1_000_000_000_001", ("cache_bytes", "at most 1,000,000,000,000")),
        ("products = 2\n", "products = 1001\n", ("products", "at most 1,000")),
        ("{ 16 = 0.5 }", "{ 16 = 0.5, 5000 = 0.5 }", ("experts.tiles", "4096", "5000")),
        ("{ 8 = 1e-6, 80 = 2e-6 }", "{ 8 = 2e-6, 80 = 1e-6 }", ("all-reduce.2", "do not fall")),
        ("{ 8 = 1e-6, 80 = 2e-6 }", "{ 8 = 3601 }", ("all-reduce.2", "3600")),
        ("all-reduce.8", "all-reduce.02", ("all-reduce", "2 twice")),
        ("all-reduce.8", "all-reduce.1", ("all-reduce", "devices from 2")),
        ("software.vllm", "software.vlm", ("software.vlm", "'vllm'")),
        ("software.vllm", "software.ideal", ("software.ideal", "trtllm")),
        (
            "[software.vllm.float32.experts]",
            "tuned = { 8 = [4] }\n[software.vllm.float32.experts]",
            ("untuned", "tuned", "both"),
        ),
    ],
)
def test_wrong_terms_are_named(tmp_path: Path, old: str, new: str, facts: tuple[str, ...]) -> None:
    assert old in MEASURED
    path = measured(tmp_path, MEASURED.replace(old, new))
    with refuses(ValueError, path, *facts):
        load_hardware(path)
