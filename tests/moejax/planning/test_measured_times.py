"""Seconds from tables of the form that aiconfigurator-core has, here small ones."""

import sys
from pathlib import Path
from typing import Any

import pytest

pandas = pytest.importorskip("pandas")  # of the test extra
from moejax import compare_meshes  # noqa: E402
from moejax.planning import measured_times, silicon  # noqa: E402
from moejax.planning.measured_times import Looked, MeasuredTimes  # noqa: E402
from moejax.planning.silicon import SiliconTables  # noqa: E402
from tests.messages import refuses  # noqa: E402

SHAPE = {"hidden_size": 4096, "inter_size": 14336, "topk": 2, "num_experts": 8}
VERSION = "1.0"


def moe(tokens: int, tensor: int, parts: int, milliseconds: float, **other: Any) -> dict[str, Any]:
    row = {"kernel_source": "k", "moe_dtype": "bfloat16", "num_tokens": tokens, "distribution": "balanced"} | SHAPE
    return row | {"moe_tp_size": tensor, "moe_ep_size": parts, "latency": milliseconds} | other


def attention(batch: int, heads: int, kv_heads: int, length: str, at: int, milliseconds: float) -> dict[str, Any]:
    row = {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "batch_size": batch, "num_heads": heads}
    return row | {"num_key_value_heads": kv_heads, "head_dim": 128, length: at, "latency": milliseconds}


MOE = [moe(tokens, 8, 1, 0.01 * tokens) for tokens in (1, 4, 16)] + [moe(4, 1, 8, 9.0), moe(4, 1, 8, 8.0)]
STEPS = [attention(batch, 4, 1, "step", at, 1e-4 * batch * at) for batch in (1, 8) for at in (100, 1000)]
PROMPTS = [attention(batch, 4, 1, "isl", at, 1e-3 * batch * at) for batch in (1, 8) for at in (128, 512)]


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with tables of one device and engine."""
    (tmp_path / "query_versions.yaml").write_text(f'defaults: {{vllm: {{current: "{VERSION}"}}}}\noverrides: {{}}\n')
    data = tmp_path / "data"
    for folder, name, rows in (
        ("moe", "moe", MOE),
        ("attention", "generation_attention", STEPS),
        ("attention", "context_attention", PROMPTS),
    ):
        path = data / "h200_sxm" / folder / "vllm" / VERSION / f"{name}_perf.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pandas.DataFrame(rows).to_parquet(path)
    monkeypatch.setattr(silicon, "data_folder", lambda: data)
    monkeypatch.setattr(silicon, "installed", lambda: "0.0")
    for cached in (silicon._versions, silicon._table, measured_times._loads, measured_times._experts):
        cached.cache_clear()
    measured_times._attention.cache_clear()
    return data


def times() -> MeasuredTimes:
    return MeasuredTimes(SiliconTables(system="h200_sxm", engine="vllm"), "bfloat16", "balanced")


def layer(tokens: int, tensor: int = 8, parts: int = 1, **other: int) -> Looked | None:
    shape = {"inputs": 4096, "width": 14336, "chosen": 2, "experts": 8} | other
    return times().expert_layer(**shape, tensor=tensor, parts=parts, tokens=tokens)


def test_layers_lie_on_straight_lines_between_points(tables: Path) -> None:
    assert layer(1) == pytest.approx((1e-5, 1)) and layer(16) == pytest.approx((16e-5, 1))
    assert layer(8) == pytest.approx((8e-5, 1))  # in logarithms, too
    assert layer(64) == pytest.approx((64e-5, 4))  # beyond them in proportion
    assert layer(4, 1, 8) == pytest.approx((8e-3, 1))  # the fastest of equal ones
    assert layer(4, 2, 4) is None and layer(4, width=100) is None


def test_attention_lies_between_batches_and_lengths(tables: Path) -> None:
    shape = {"heads": 4, "kv_heads": 1, "head_dim": 128}
    assert times().step(**shape, sequences=4, positions=500) == pytest.approx((1e-7 * 4 * 500, 1))
    assert times().step(**shape, sequences=4, positions=2000) == pytest.approx((1e-7 * 4 * 2000, 2))
    assert times().prompt(**shape, sequences=8, length=128) == pytest.approx((1e-6 * 8 * 128, 1))
    assert times().step(heads=8, kv_heads=1, head_dim=128, sequences=4, positions=500) is None


def test_rows_say_what_was_measured(tables: Path) -> None:
    options = {"batch_size": 4, "context": 500, "input_len": 100, "software": "vllm", "skew": "balanced"}
    found = {row.label: row for row in compare_meshes("mixtral-8x7b", 8, "h200", times="measured", **options)}  # type: ignore[arg-type]
    fitted = {row.label: row for row in compare_meshes("mixtral-8x7b", 8, "h200", **options)}  # type: ignore[arg-type]
    tensor, expert = found["tensor=8"].decode, found["expert=8 replicated"].decode
    hybrid = found["expert=2,tensor=4 replicated"].decode
    assert tensor and expert and hybrid
    assert tensor.measured == ("cache", "experts") == expert.measured and hybrid.measured == ("cache",)
    assert tensor.beyond == 1 and found["tensor=8"].prefill.beyond > 10  # type: ignore[union-attr]  # 512 tokens, of 16
    assert expert.seconds - tensor.seconds == pytest.approx(32 * (8e-3 - 4e-5), rel=0.01)
    other = fitted["expert=2,tensor=4 replicated"].decode
    assert other and other.measured == () and hybrid.overhead_seconds != other.overhead_seconds


def test_what_was_not_measured_is_refused(tables: Path) -> None:
    for options, facts in (
        ({"hardware": "v100-32gb", "dtype": "float16"}, ("v100-32gb", "a100-80gb")),
        ({"software": "moejax"}, ("moejax", "vllm")),
        ({"dtype": "float16"}, ("float16", "bfloat16")),
        ({"skew": "uniform"}, ("vllm", "h200", "skew=balanced")),
        ({"skew": "power-law:1.3"}, ("skew=balanced",)),
        ({"skew": "zipf:1.0"}, ("vllm", "h200", "skew=balanced")),
        ({"times": "guessed"}, ("fitted or measured", "'guessed'")),
    ):
        given = {"hardware": "h200", "software": "vllm", "skew": "balanced", "times": "measured"} | options
        if given["hardware"] == "v100-32gb":
            given["software"] = "ideal"
        with refuses(ValueError, *facts):
            compare_meshes("mixtral-8x7b", 8, given.pop("hardware"), batch_size=1, **given)  # type: ignore[arg-type]


def test_another_layout_is_named(tables: Path) -> None:
    path = tables / "h200_sxm/moe/vllm" / VERSION / "moe_perf.parquet"
    pandas.DataFrame(MOE).rename(columns={"topk": "k"}).to_parquet(path)
    with refuses(ValueError, path, "layout", "topk", "0.12.0"):
        layer(1)
    (tables.parent / "query_versions.yaml").write_text("slots: {}\n")
    silicon._versions.cache_clear()
    with refuses(ValueError, "query_versions.yaml", "layout", "0.12.0"):
        layer(1)


def test_a_missing_table_and_a_missing_package_are_told(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refuses(ValueError, "no table moe", "SGLang", "fitted"):
        SiliconTables(system="h200_sxm", engine="sglang").read("moe")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)
    with refuses(ValueError, "aiconfigurator-core", "pip install 'moejax[silicon]'"):
        silicon.data_folder()
