"""Takes measured MoE layers of two models from aiconfigurator-core, for a page that is made without it.

    pip install 'moejax[silicon]'
    python -m scripts.silicon_layers

Writes docs/predictions/layers.json: layers of Mixtral 8x7B and of Qwen3-30B-A3B, bf16 and fp8, on each GPU and under
each engine, split in every way over at most 8 devices, 1 to 16,384 tokens. Licence and changes: NOTICE beside it.
"""

import json
from typing import TYPE_CHECKING, Any

from moejax.planning import silicon
from moejax.planning.silicon import DTYPES, ENGINES, MOE_KEYS, SYSTEMS, Tables
from scripts.predicted_layers import LAYERS, LOADS, MODELS, Model

if TYPE_CHECKING:
    import pandas

MOST_DEVICES = 8
# At which the tables have layers, without those beyond 16,384.
TOKENS = [1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
TOKENS += [6144, 8192, 12288, 16384]


def layers_of(tables: Tables, dtype: str, model: Model) -> dict[str, Any] | None:
    """The layers of one model: the kernel, and by load and split microseconds at each of `TOKENS`."""
    moe = silicon.gated(tables.read("moe"), dtype)
    shape = (moe.hidden_size == model.inputs) & (moe.inter_size == model.width) & (moe.num_experts == model.experts)
    few = (moe.moe_tp_size * moe.moe_ep_size <= MOST_DEVICES) & moe.distribution.isin(list(LOADS))
    moe = moe[shape & (moe.topk == model.chosen) & few]
    if moe.empty:
        return None
    found: dict[str, dict[str, list[float | None]]] = {}
    fastest = silicon.fastest(moe, [*MOE_KEYS, "distribution"])  # type: ignore[arg-type]  # pandas' own types are wide
    for keys, one in fastest.groupby(["distribution", "moe_tp_size", "moe_ep_size"]):
        load, tensor, expert = map(str, keys)  # type: ignore[arg-type]
        found.setdefault(load, {})[f"tensor={tensor},expert={expert}"] = _microseconds(one)
    return {"kernel": ", ".join(sorted(set(moe.kernel_source))), "microseconds": found}


def _microseconds(split: "pandas.DataFrame") -> list[float | None]:
    by_tokens = dict(zip(split.num_tokens, split.seconds, strict=True))
    return [float(f"{by_tokens[tokens] * 1e6:.4g}") if tokens in by_tokens else None for tokens in TOKENS]


def _by_model(tables: Tables, dtype: str) -> dict[str, Any]:
    layers = {model.name: layers_of(tables, dtype, model) for model in MODELS}
    return {name: one for name, one in layers.items() if one is not None}


def main() -> None:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for hardware, system in SYSTEMS.items():
        for engine in ENGINES:
            tables = Tables(system=system, engine=engine)
            by_dtype = {dtype: _by_model(tables, dtype) for dtype in DTYPES}
            found.setdefault(hardware, {})[engine] = {dtype: one for dtype, one in by_dtype.items() if one}
    written = {"source": f"{silicon.PACKAGE} {silicon.installed()}", "tokens": TOKENS, "layers": found}
    LAYERS.write_text(json.dumps(written, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"wrote {LAYERS}")


if __name__ == "__main__":
    main()
