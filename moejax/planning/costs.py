"""Seconds of a decode step and of a prefill: a roofline for each part of a layer, and rings of devices. No JAX.

docs/performance-model.md has every formula of this file with its source.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial, reduce
from typing import NamedTuple

from moejax.families.config import ModelConfig
from moejax.moe.split import DispatchName
from moejax.planning import coefficients
from moejax.planning.calls import ProgramCall, decode_call, prefill_calls
from moejax.planning.communication import Tokens, choice_collectives, forward_collectives
from moejax.planning.footprint import cache_bytes, device_weights
from moejax.planning.hardware import Hardware, Link
from moejax.planning.routing import RoutingModel
from moejax.planning.rows import Phase
from moejax.planning.workload import Workload
from sharding import MESH_AXES, MeshConfig, Rules
from sharding.collectives import Collective, wire_elements
from sharding.collectives.collective import ITEM_SIZES


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model, split, on devices of one kind.

    ragged: whether tokens travel to their experts' devices only, which no dispatch does yet.
    """

    config: ModelConfig
    rules: Rules
    dispatch: DispatchName
    hardware: Hardware
    routing: RoutingModel
    ragged: bool = False


class PartCost(NamedTuple):
    """What one part of a call takes: bytes that a device reads, FLOPs of its products, and at which speed."""

    bytes: float
    flops: float
    speed: float


def predict_decode(setting: Setting, workload: Workload) -> Phase:
    """One step of the decode loop."""
    return predict_call(setting, decode_call(workload, setting.rules), workload.dtype)


def predict_prefill(setting: Setting, workload: Workload) -> Phase:
    """All calls that feed the prompts; equal ones are predicted once."""
    calls = list(prefill_calls(workload, setting.rules))
    phases = {call: predict_call(setting, call, workload.dtype) for call in set(calls)}
    return reduce(_and, (phases[call] for call in calls))


def predict_call(setting: Setting, call: ProgramCall, dtype: str) -> Phase:
    """One call of a compiled program, as its busiest device has it."""
    config, rules, hardware = setting.config, setting.rules, setting.hardware
    tokens = call.group_tokens(rules)
    parts = rules.parts("experts")
    read = setting.routing.experts_read(parts, tokens)
    rows = setting.routing.busiest_rows(parts, tokens)
    work = _work(setting, call, dtype, read, rows)
    collectives = call_collectives(setting, call, dtype)
    latency, bandwidth = exchange_seconds(collectives, rules.mesh, hardware)
    reading = {name: part.bytes / hardware.bandwidth for name, part in work.items()}
    computing = {name: part.flops / part.speed for name, part in work.items()}
    return Phase(
        weight_bytes=sum(part.bytes for name, part in work.items() if name != "cache"),
        expert_bytes=work["experts"].bytes,
        kv_bytes=work["cache"].bytes,
        flops=sum(part.flops for part in work.values()),
        collectives=collectives,
        experts_read=read / rules.parts("mlp"),
        imbalance=rows * parts / (tokens * config.experts_per_token),
        calls=1,
        weights_seconds=sum(seconds for name, seconds in reading.items() if name != "cache"),
        kv_seconds=reading["cache"],
        compute_seconds=sum(computing.values()),
        exposed_compute_seconds=sum(max(0.0, computing[name] - reading[name]) for name in work),
        latency_seconds=latency,
        bandwidth_seconds=bandwidth,
        overhead_seconds=config.num_layers
        * (
            hardware.layer_overhead
            + read * hardware.expert_overhead
            + call.own_sequences(rules) * call.width * hardware.token_overhead
        ),
    )


def _work(setting: Setting, call: ProgramCall, dtype: str, read: float, rows: float) -> dict[str, PartCost]:
    """What the busiest device reads and computes, by the parts whose reads overlap with their own products."""
    config, rules = setting.config, setting.rules
    d, cost, share = config.embed_dim, coefficients.COST, device_weights(config, rules)
    own_sequences, item = call.own_sequences(rules), ITEM_SIZES[dtype]
    own = own_sequences * call.width
    routed = own if setting.dispatch == "all_to_all" else call.sequences // rules.parts("groups") * call.width
    held, product = share.elements, cost.flops_per_product
    query_heads, key_heads = config.num_heads // rules.parts("q_heads"), config.num_kv_heads // rules.parts("kv_heads")
    scores = product * cost.attention_products * own * query_heads * config.head_dim * call.visited
    table = held["embed"] if config.tie_embeddings else share.multiplied["head"]
    products = (share.multiplied["attention"] + share.multiplied["mlp"]) * own + share.multiplied["router"] * routed
    speed = partial(setting.hardware.speed, dtype)
    attend = "attend_step" if call.width == 1 else "attend_prompt"
    return {
        "attention": PartCost(
            (held["attention"] + held["router"] + held["mlp"]) * item, product * products, speed("project", own)
        ),
        "cache": PartCost(
            cache_bytes(config, rules, call.sequences, call.positions, dtype),
            config.num_layers * scores,
            speed(attend, query_heads / key_heads),
        ),
        "experts": PartCost(
            read * held["experts"] * item, product * rows * share.multiplied["experts"], speed("experts", rows / read)
        ),
        "head": PartCost(
            (table + d + cost.embedding_rows * own * d) * item,  # with the last norm
            product * own_sequences * table,
            speed("project", own_sequences),
        ),
    }


def _and(first: Phase, second: Phase) -> Phase:
    """Both, one after the other; what is expected per call is the mean."""
    calls = first.calls + second.calls

    def mean(name: str) -> float:
        return (getattr(first, name) * first.calls + getattr(second, name) * second.calls) / calls

    summed = (
        "weight_bytes expert_bytes kv_bytes flops weights_seconds kv_seconds compute_seconds exposed_compute_seconds "
        "latency_seconds bandwidth_seconds overhead_seconds"
    ).split()
    return replace(
        first,
        calls=calls,
        collectives=first.collectives + second.collectives,
        experts_read=mean("experts_read"),
        imbalance=mean("imbalance"),
        **{name: getattr(first, name) + getattr(second, name) for name in summed},
    )


def call_collectives(setting: Setting, call: ProgramCall, dtype: str) -> list[Collective]:
    """Every collective of one call, in the order in which they run."""
    tokens = Tokens(sequences=call.sequences, length=call.width)
    found = forward_collectives(setting.config, setting.rules, setting.dispatch, tokens, dtype)
    if setting.ragged:
        found = _ragged(found, setting)
    return found + (choice_collectives(setting.rules, tokens) if call.chooses else [])


def _ragged(collectives: list[Collective], setting: Setting) -> list[Collective]:
    """What `all_to_all` would exchange if a token went only to its experts' devices, A of e, and no slot were empty."""
    share = min(1.0, setting.config.experts_per_token / setting.rules.parts("experts"))
    return [
        replace(one, elements=round(one.elements * share)) if one.kind == "all-to-all" else one for one in collectives
    ]


def exchange_seconds(collectives: Iterable[Collective], mesh: MeshConfig, hardware: Hardware) -> tuple[float, float]:
    """Seconds that all of them take: what their size does not change, and what it does."""
    latency = bandwidth = 0.0
    for one, count in Counter(collectives).items():
        link = link_of(one.axes, mesh, hardware)
        group = mesh.extent(one.axes)  # type: ignore[arg-type]
        rounds = coefficients.COST.all_reduce_rounds if one.kind == "all-reduce" else coefficients.COST.other_rounds
        wire = float(wire_elements(one, mesh.shape)) * ITEM_SIZES[one.dtype]
        latency += count * (link.launch + rounds * (group - 1) * link.latency)
        bandwidth += count * wire / link.bandwidth
    return latency, bandwidth


@lru_cache(maxsize=4096)
def _crosses(axes: tuple[str, ...], mesh: MeshConfig, per_node: int) -> bool:
    """Whether some group of devices along `axes` has members in several nodes, the devices being numbered as the mesh
    orders them: tensor neighbours next to each other, data farthest apart.
    """
    strides, stride = {}, 1
    for axis in reversed(MESH_AXES):
        strides[axis] = stride
        stride *= mesh.shape[axis]
    members = [0]
    for axis in axes:
        members = [m + i * strides[axis] for m in members for i in range(mesh.shape[axis])]
    rest = [0]
    for axis in MESH_AXES:
        if axis not in axes:
            rest = [r + i * strides[axis] for r in rest for i in range(mesh.shape[axis])]
    return any(len({(start + member) // per_node for member in members}) > 1 for start in rest)


def link_of(axes: tuple[str, ...], mesh: MeshConfig, hardware: Hardware) -> Link:
    """What connects the devices along `axes`: a ring is as slow as its slowest link, so the network if it is in one.

    Raises:
        ValueError: when the hardware file says nothing about the link, or about the network between their nodes.
    """
    if hardware.link is None:
        raise ValueError(
            f"hardware {hardware.name} has no [link]: {mesh.size} devices need one; add it to the file, or "
            "measure it where there are several: moejax mesh calibrate"
        )
    if mesh.size <= hardware.devices_per_node or not _crosses(axes, mesh, hardware.devices_per_node):
        return hardware.link
    if hardware.network is None:
        raise ValueError(
            f"hardware {hardware.name} has {hardware.devices_per_node} devices in a node and no [network]: "
            f"{mesh.size} devices need one; add it to a file of your own, or raise devices_per_node"
        )
    return hardware.network
