"""The same model split in different ways, counted: what each device holds, and what it sends per token. No JAX.

Closed forms of `planning.communication`, which the tests compare with the collectives that XLA compiled on every mesh.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from moejax._sharding import MeshConfig, Rules
from moejax._sharding.collectives import wire_elements
from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.bench.works import Work
from moejax.families.config import ModelConfig
from moejax.moe.split import Split, make_rules, resolve_split
from moejax.planning.communication import Tokens, choice_collectives, forward_collectives
from moejax.planning.footprint import device_weights, weight_bytes
from moejax.planning.routing import RoutingModel

COUNTED = "counted (simulated devices: no times)"
TIMED = "timed on real devices"
STRATEGIES_HEADER = (
    *("parallelism", "batch", "MB held", "MB read/step"),
    *("collectives/step", "kB sent/step", "MB sent/prefill"),
)


def meshes_of(names: Sequence[str], devices: int | None) -> list[str]:
    """The meshes asked for; "all" is one each of intra-expert, inter-expert and hybrid over `devices`.

    Raises:
        ValueError: for "all" without a number of devices that has all three.
    """
    found: list[str] = []
    for name in names:
        if name != "all":
            found.append(name)
            continue
        if devices is None or devices < 4 or devices % 2:
            raise ValueError(
                f"--mesh all needs --simulate-devices with an even number from 4 on, got {devices}; on real devices "
                "name each mesh, as in --mesh tensor=4 --mesh expert=4 --mesh expert=2,tensor=2"
            )
        found += [f"tensor={devices}", f"expert={devices}", f"expert={devices // 2},tensor=2"]
    return list(dict.fromkeys(found))


def strategy_name(mesh: MeshConfig) -> str:
    """What people call this split of the experts."""
    if mesh.expert > 1 and mesh.tensor > 1:
        return "hybrid"
    return "inter-expert" if mesh.expert > 1 else "intra-expert" if mesh.tensor > 1 else "data parallel"


def count_strategies(
    config: ModelConfig, meshes: Sequence[str], works: Sequence[Work], dtype: str, dispatch: str
) -> list[dict[str, Any]]:
    """A row per mesh: bytes of weights per device, held and read, collectives and bytes sent per step and per prefill.

    Raises:
        ValueError: for a mesh that cannot split this model.
    """
    rows = []
    for text in meshes:
        split = resolve_split(config, text, dispatch)
        rules = make_rules(config, split.mesh, split.dispatch)
        rows.append(
            {
                "strategy": strategy_name(split.mesh),
                "mesh": str(split.mesh),
                "dispatch": split.dispatch,
                "weight_bytes_per_device": weight_bytes(config, rules, dtype),
                "works": [_count(config, rules, split, work, dtype) for work in works],
            }
        )
    return rows


def strategies_rows(strategies: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row per strategy and batch: its cells under `STRATEGIES_HEADER`."""
    return [
        (
            f"{row['strategy']}: {row['mesh']}, {row['dispatch']}",
            str(work["batch_size"]),
            f"{row['weight_bytes_per_device'] / 1e6:,.1f}",
            f"{work['decode_step']['weight_bytes_read'] / 1e6:,.1f}",
            str(work["decode_step"]["collectives"]),
            f"{work['decode_step']['wire_bytes_per_device'] / 1e3:,.1f}",
            f"{work['prefill']['wire_bytes_per_device'] / 1e6:,.2f}",
        )
        for row in strategies["rows"]
        for work in row["works"]
    ]


def read_elements(config: ModelConfig, rules: Rules, tokens: int) -> float:
    """Parameters that the busiest device reads for one token of each of `tokens` sequences that its group decodes.

    Its part of attention, norms, router and head, and the experts that are chosen: expected under uniform routing,
    where every A experts are equally likely (docs/performance-model.md).
    """
    routing, share = RoutingModel(config.num_experts, config.experts_per_token), device_weights(config, rules)
    experts = routing.experts_read(rules.parts("experts"), tokens) * share.elements["experts"]
    table = config.vocab_size // rules.parts("vocab") * config.embed_dim
    others = sum(share.elements[part] for part in ("attention", "router", "mlp"))
    return table + config.embed_dim + experts + others


def _count(config: ModelConfig, rules: Rules, split: Split, work: Work, dtype: str) -> dict[str, Any]:
    parts = rules.parts("batch")
    padded = -(-work.batch_size // parts) * parts  # a batch that does not divide is padded
    counted: dict[str, Any] = {"batch_size": work.batch_size, "input_len": work.input_len, "padded_rows": padded}
    for phase, length in (("decode_step", 1), ("prefill", work.input_len)):
        tokens = Tokens(sequences=padded, length=length)
        found = forward_collectives(config, rules, split.dispatch, tokens, dtype)
        found += choice_collectives(rules, Tokens(sequences=padded, length=1))
        shape = split.mesh.shape
        sent = sum((wire_elements(one, shape) * ITEM_SIZES[one.dtype] for one in found), Fraction(0))
        counted[phase] = {"collectives": len(found), "wire_bytes_per_device": float(sent)}
    counted["padded_rows"] -= work.batch_size
    tokens = -(-work.batch_size // split.mesh.data)  # of one group of devices; padding is routed to no expert
    counted["decode_step"]["weight_bytes_read"] = read_elements(config, rules, tokens) * ITEM_SIZES[dtype]
    return counted
