"""Fits the terms of hardware files to measured kernels, and says how far they are off where they were not fitted.

    pip install 'moejax[silicon]'
    python -m scripts.fit_hardware [--only h200] [--write] [--report FILE.json]

Reads the tables of aiconfigurator-core (NVIDIA, Apache-2.0). Left out of the fit, and reported: the layers of
Qwen3-30B-A3B, and every layer under a power law of 1.2. Without --write no hardware file is changed.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moejax._sharding.collectives import CollectiveKind
from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.planning import silicon
from moejax.planning.compiled_counts import KERNELS_PER_LAYER
from moejax.planning.hardware import Curve, Hardware
from moejax.planning.hardware_file import SHIPPED, load_hardware
from moejax.planning.hardware_toml import hardware_toml
from moejax.planning.kernels import BetweenTerms, DeviceRates, ExpertTerms, Software, SoftwareKernels
from moejax.planning.silicon import ENGINES, SYSTEMS, Frame, SiliconTables
from scripts import fit_terms
from scripts.fit_terms import Layers

# Of a decode step of Mixtral 8x7B that XLA compiles for an H200 (docs/accelerators.md): a layer's at batch 2 to 64.
LIBRARY_GROUPS = (2, 4, 8)
STRAIGHT = 0.03  # by which a curve may be off between the points that are kept
WITHIN = 0.25


@dataclass(frozen=True)
class Fitted:
    """What one engine runs in one dtype, and how far off that is."""

    kernels: SoftwareKernels
    kernel: str
    errors: dict[str, dict[str, float]]


def fit_kernels(hardware: Hardware, engine: str, dtype: str, shapes: dict[str, Any]) -> Fitted | None:
    """Terms of one engine's kernels in one dtype; None where its experts were not measured in it."""
    tables = SiliconTables(system=SYSTEMS[hardware.name], engine=engine)
    if not (kernel := silicon.main_kernel(tables.read("moe"), dtype)):
        return None
    device, item = hardware.device(dtype), ITEM_SIZES[dtype]
    layers = Layers.of(measured_layers(tables, dtype, kernel))
    known = shapes.get(f"{engine} {tables.version}", {}).get(hardware.name, {}).get(dtype, [])
    tuned = frozenset(map(tuple, known)) if "triton" in kernel or kernel == "vllm_fused_moe" else frozenset()
    experts, untuned, predicted = fit_terms.fit_experts(layers, device, item, layers.among(tuned))
    second = None if tuned else second_layers(tables, dtype, kernel, layers)
    if second is not None:
        untuned, _, _ = fit_terms.fit_experts(second, device, item, second.among(tuned))
        tuned = layers.shapes
    product, products = fit_terms.fit_products(dense_products(tables, dtype), device, item)
    bf16 = hardware.device("bfloat16")
    step, steps = fit_terms.fit_steps(attention(tables, "generation_attention"), bf16, 2)
    prompt, prompts = fit_terms.fit_prompts(attention(tables, "context_attention"), bf16, 2)
    kernels = SoftwareKernels(
        product=product,
        between=fit_terms.between(_system(tables.system)),
        step=step,
        prompt=prompt,
        experts=experts,
        untuned=untuned,
        tuned=tuned if untuned else frozenset(),
        inputs=_range(layers.shape.inputs),
        widths=_range(layers.shape.width),
    )
    shape = np.logical_and.reduce([layers.table[key] == value for key, value in fit_terms.HELD_OUT_SHAPE.items()])
    load = layers.held_out & ~shape
    errors = {
        name: _errors(predicted[which], layers.seconds[which])
        for name, which in (("fitted", ~layers.held_out), ("other shape", shape), ("other load", load))
        if which.any()
    }
    if (older := older_layers(tables, dtype)) is not None:
        seconds = predict_experts(older, device, item, experts, untuned, tuned)
        errors["other version"] = _errors(seconds, older.seconds)
    errors |= {"products": _errors(*products), "decode attention": _errors(*steps), "prompts": _errors(*prompts)}
    return Fitted(kernels, kernel, errors)


def predict_experts(
    layers: Layers,
    device: DeviceRates,
    item: float,
    experts: ExpertTerms,
    untuned: ExpertTerms | None,
    tuned: frozenset[tuple[int, int]],
) -> np.ndarray:
    """Seconds of layers that nothing was fitted to."""
    seconds = experts.spent(device, layers.shape, layers.load, item, resident=True).seconds
    if untuned is None:
        return seconds
    other = untuned.spent(device, layers.shape, layers.load, item, resident=True).seconds
    return np.where(layers.among(tuned), seconds, other)


def measured_layers(tables: SiliconTables, dtype: str, kernel: str) -> Frame:
    """Layers of one kernel on at most 8 devices; of equal ones the fastest."""
    return _fitting(silicon.gated(tables.read("moe"), dtype), kernel)


def _range(sizes: np.ndarray) -> tuple[float, float]:
    return float(sizes.min()), float(sizes.max())


def _fitting(moe: Frame, kernel: str) -> Frame:
    fits = (moe.moe_tp_size * moe.moe_ep_size <= fit_terms.MOST_DEVICES) & (moe.num_experts % moe.moe_ep_size == 0)
    known = moe.distribution.isin(list(fit_terms.LOADS))
    return silicon.fastest(moe[(moe.kernel_source == kernel) & fits & known], [*silicon.MOE_KEYS, "distribution"])


def older_layers(tables: SiliconTables, dtype: str) -> Layers | None:
    """Layers of the version of the engine before, where the package still has them."""
    moe = tables.older("moe")
    if moe is None or not (kernel := silicon.main_kernel(moe, dtype)):
        return None
    return Layers.of(_fitting(silicon.gated(moe, dtype), kernel))


def second_layers(tables: SiliconTables, dtype: str, kernel: str, layers: Layers) -> Layers | None:
    """Layers of models that the engine runs by another kernel than most; None where all run by one."""
    moe = silicon.gated(tables.read("moe"), dtype)
    keys = ["hidden_size", "inter_size", "topk", "num_experts"]
    ran = layers.table[keys].drop_duplicates()
    others = moe.merge(ran, on=keys, how="left", indicator=True)
    others = others[others._merge == "left_only"]
    return Layers.of(_fitting(others, str(others.kernel_source.value_counts().index[0]))) if len(others) else None


def dense_products(tables: SiliconTables, dtype: str) -> Frame:
    gemm = tables.read("gemm")
    usual = (gemm.k >= 512) & (gemm.n >= 8) & (gemm.n <= 150_000) & (gemm.m <= 16_384)
    return silicon.fastest(gemm[(gemm.gemm_dtype == silicon.DTYPES[dtype]) & usual], "mnk")


def attention(tables: SiliconTables, name: str) -> Frame:
    """Grouped heads of usual width, without a window."""
    table = tables.read(name)
    usual = (table.attn_dtype == "bfloat16") & (table.kv_cache_dtype == "bfloat16") & table.head_dim.isin([64, 128])
    if "window_size" in table:
        usual &= table.window_size == 0
    length = "step" if "step" in table and name.startswith("generation") else "isl"
    keys = ["batch_size", "num_heads", "num_key_value_heads", "head_dim", length]
    return silicon.fastest(table[usual & (table.num_key_value_heads < table.num_heads)], keys)


def collective_curves(hardware: Hardware) -> dict[str, dict[CollectiveKind, dict[int, Curve]]]:
    """NCCL's of every kind, and each engine's own all-reduce."""
    found: dict[str, dict[CollectiveKind, dict[int, Curve]]] = {}
    tables = {engine: SiliconTables(system=SYSTEMS[hardware.name], engine=engine) for engine in ENGINES}
    nccl = tables["vllm"].read("nccl")
    found[silicon.NCCL] = {
        kind: _curves(nccl[(nccl.nccl_dtype == "half") & (nccl.op_name == name)])
        for name, kind in silicon.KINDS.items()
    }
    for engine, one in tables.items():
        found[engine] = {"all-reduce": _curves(one.read("custom_allreduce"))}
    return found


def _curves(table: Frame) -> dict[int, Curve]:
    fastest = silicon.fastest(table, ["num_gpus", "message_size"])
    fastest["seconds"] = fastest[::-1].groupby("num_gpus").seconds.cummin()  # more bytes in less time: a blip before
    return {
        count: _thinned({2 * int(row.message_size): float(f"{row.seconds:.4g}") for row in one.itertuples()})
        for count, one in fastest.groupby("num_gpus")
        if count in LIBRARY_GROUPS
    }


def _thinned(curve: dict[int, float]) -> dict[int, float]:
    """The points without which straight lines between logarithms would be off by more than STRAIGHT."""
    sizes = sorted(curve)
    x, y = np.log(sizes), np.log([curve[size] for size in sizes])
    kept = {0, len(sizes) - 1}
    while True:
        order = sorted(kept)
        off = np.abs(np.interp(x, x[order], y[order]) - y)
        if off.max() <= STRAIGHT:
            return {sizes[i]: curve[sizes[i]] for i in order}
        kept.add(int(off.argmax()))


def own_kernels(vllm: SoftwareKernels, seconds: float) -> SoftwareKernels:
    """moejax's on a GPU where they never ran: vLLM's shares of bandwidth and rate, and our number of kernels."""
    return SoftwareKernels(
        product=replace(vllm.product, fixed=0.0),
        between=BetweenTerms(fixed=float(f"{KERNELS_PER_LAYER * seconds:.4g}"), copies=vllm.between.copies),
        step=replace(vllm.step, fixed=0.0),
        prompt=replace(vllm.prompt, fixed=0.0),
        experts=replace(vllm.experts, fixed=0.0),
        inputs=vllm.inputs,
        widths=vllm.widths,
    )


def fit_hardware(name: str) -> tuple[Hardware, dict[str, Any]]:
    """A hardware file's figures with everything that is fitted, and the errors by engine and dtype."""
    hardware = load_hardware(name)
    shapes = json.loads((Path(__file__).parent / "tuned_shapes.json").read_text())
    found, errors, sources = {}, {}, dict(hardware.sources)
    for engine, title in ENGINES.items():
        tables = SiliconTables(system=SYSTEMS[name], engine=engine)
        fitted = {dtype: fit_kernels(hardware, engine, dtype, shapes) for dtype in silicon.DTYPES}
        measured = {dtype: one for dtype, one in fitted.items() if one is not None}
        found[engine] = Software(
            title=f"{title} {tables.version}",
            kernels={dtype: one.kernels for dtype, one in measured.items()},
            all_reduce=engine,
            collectives=silicon.NCCL,
        )
        errors[engine] = {dtype: {"kernel": one.kernel} | one.errors for dtype, one in measured.items()}
        sources[f"software.{engine}"] = _source(title, tables.version, errors[engine])
    least = float(SiliconTables(system=SYSTEMS[name], engine="vllm").read("gemm").seconds.min())
    found["moejax"] = Software(
        title="moejax",
        kernels={"bfloat16": own_kernels(found["vllm"].kernels["bfloat16"], least)},
        all_reduce=silicon.NCCL,
        collectives=silicon.NCCL,
    )
    sources["software.moejax"] = (
        f"assumed, for they never ran there: shares of vLLM's kernels; {KERNELS_PER_LAYER} kernels a layer, counted in "
        f"the step that XLA compiles for an H200, of {least * 1e6:.1f} us, the shortest kernel in the tables"
    )
    sources["collectives"] = f"{silicon.PACKAGE} {silicon.installed()}: nccl-tests, and each engine's own all-reduce"
    return replace(hardware, software=found, collectives=collective_curves(hardware), sources=sources), errors


def _source(title: str, version: str, errors: dict[str, Any]) -> str:
    parts = [
        f"{dtype}: {one['kernel']}, median error {one['fitted']['median']:.1%}"
        + (f", on another model's layers {one['other shape']['median']:.1%}" if "other shape" in one else "")
        for dtype, one in errors.items()
    ]
    return (
        f"fitted to {silicon.PACKAGE} {silicon.installed()}, {title} {version}, by scripts/fit_hardware.py; "
        + "; ".join(parts)
    )


def _errors(predicted: np.ndarray, seconds: np.ndarray) -> dict[str, float]:
    off = np.abs(predicted / seconds - 1)
    return {
        "rows": len(off),
        "median": round(float(np.median(off)), 4),
        "within": round(float((off <= WITHIN).mean()), 4),
    }


def _system(name: str) -> dict[str, Any]:
    return yaml.safe_load((silicon.data_folder().parent / f"{name}.yaml").read_text(encoding="utf-8"))


def report_lines(errors: dict[str, Any]) -> Iterator[str]:
    """One line per device, engine and dtype: median error and share within 25%."""
    for name, engines in errors.items():
        for engine, dtypes in engines.items():
            for dtype, parts in dtypes.items():
                said = [
                    f"{key} {one['median']:.1%}/{one['within']:.0%}" for key, one in parts.items() if key != "kernel"
                ]
                yield f"{name} {engine} {dtype}: {', '.join(said)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(SYSTEMS), default=list(SYSTEMS), help="which hardware")
    parser.add_argument("--write", action="store_true", help="write the hardware files that come with moejax")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="where the errors go")
    flags = parser.parse_args()
    errors = {}
    with Pool(2) as pool:
        for hardware, off in pool.imap(fit_hardware, flags.only):
            errors[hardware.name] = off
            if flags.write:
                (SHIPPED / f"{hardware.name}.toml").write_text(hardware_toml(hardware), encoding="utf-8")
    print("\n".join(report_lines(errors)))
    if flags.report:
        flags.report.write_text(json.dumps(errors, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
