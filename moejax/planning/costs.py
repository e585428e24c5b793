"""Seconds of a decode step and of a prefill: each part of a layer by measured kernels or a roofline. No JAX.

docs/performance-model.md has every formula of this file with its source.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal, NamedTuple

from moejax._sharding import Rules
from moejax._sharding.collectives import Collective
from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.families.config import ModelConfig
from moejax.moe.split import DISPATCHES, DispatchName
from moejax.planning import coefficients, overlap
from moejax.planning.calls import ProgramCall, decode_call, prefill_calls
from moejax.planning.communication import Tokens, choice_collectives, forward_collectives
from moejax.planning.compiled_counts import CompiledCounts
from moejax.planning.footprint import cache_bytes, device_weights
from moejax.planning.hardware import Hardware, Operation
from moejax.planning.kernels import DeviceLoad, Shape, SoftwareKernels, Spent
from moejax.planning.links import exchange_seconds
from moejax.planning.measured_times import Looked, MeasuredTimes
from moejax.planning.routing import RoutingModel
from moejax.planning.rows import Phase
from moejax.planning.workload import Workload
from moejax.weights.counts import num_places


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model, split, on devices of one kind.

    software: whose kernels and collectives, as measured on this hardware; "ideal" is a roofline, and so is what was not
        measured.
    times: measured tables, where they were asked for.  micro_batches: see `moejax.load`.
    compiled: what the device's compiler makes of the programs, where it was asked.
    ragged: whether tokens travel to their experts' devices only, which no dispatch does yet.
    """

    config: ModelConfig
    rules: Rules
    dispatch: DispatchName
    hardware: Hardware
    routing: RoutingModel
    software: str = "ideal"
    times: MeasuredTimes | None = None
    micro_batches: int = 1
    compiled: CompiledCounts | None = None
    ragged: bool = False


SUMMED = (  # of several calls
    *("weight_bytes", "expert_bytes", "kv_bytes", "flops", "weights_seconds", "kv_seconds", "compute_seconds"),
    *("exposed_compute_seconds", "latency_seconds", "bandwidth_seconds", "overhead_seconds"),
)
QUERY_COPIES, KEY_COPIES = 2, 4  # of a layer's attention: queries in, sums out; keys and values written and read
PartName = Literal["attention", "cache", "experts", "head"]


class PartWork(NamedTuple):
    """What one part of a call takes on the busiest device: bytes that it reads and FLOPs of its products; by which
    operation and of how many rows, where its speed was calibrated.
    """

    bytes: float
    flops: float
    operation: Operation
    rows: float

    def times(self, count: int) -> "PartWork":
        return self._replace(bytes=count * self.bytes, flops=count * self.flops)


def predict_decode(setting: Setting, workload: Workload) -> Phase:
    """One step of the decode loop, whose attention reads what is filled of the cache."""
    call = decode_call(workload, setting.rules)
    filled = replace(call, positions=workload.context, visited=workload.context)
    return predict_call(setting, filled, workload.dtype)


def predict_prefill(setting: Setting, workload: Workload) -> Phase:
    """All calls that feed the prompts; equal ones are predicted once."""
    calls = Counter(prefill_calls(workload, setting.rules))
    return reduce(
        _and, (_repeated(predict_call(setting, call, workload.dtype), count) for call, count in calls.items())
    )


def predict_call(setting: Setting, call: ProgramCall, dtype: str) -> Phase:
    """One call of a compiled program, as its busiest device has it."""
    config, rules, hardware = setting.config, setting.rules, setting.hardware
    tokens, parts = call.group_tokens(rules), rules.parts("experts")
    read, rows = setting.routing.experts_read(parts, tokens), setting.routing.busiest_rows(parts, tokens)
    work, spent, measured = _work_and_seconds(setting, call, dtype)
    collectives = call_collectives(setting, call, dtype)
    if (pieces := overlap.pieces(call, rules, setting.micro_batches)) > 1:
        piece = overlap.piece(call, pieces)
        of_piece, spent_on_piece, _ = _work_and_seconds(setting, piece, dtype)
        work |= {"experts": of_piece["experts"].times(pieces)}
        spent |= {"experts": spent_on_piece["experts"].times(pieces)}
        collectives = overlap.divided(collectives, pieces)
    latency, bandwidth = exchange_seconds(collectives, rules.mesh, hardware, setting.software)
    if pieces > 1:
        output = spent["attention"].seconds * overlap.output_share(config)
        seconds = {"attention": output, "moe": spent["experts"].seconds}
        exchanged = {
            scope: sum(
                exchange_seconds(
                    [one for one in collectives if one.scope == scope], rules.mesh, hardware, setting.software
                )
            )
            for scope in seconds
        }
        latency, bandwidth = overlap.exposed(latency, bandwidth, overlap.hidden(exchanged, seconds, pieces))
    kernels = hardware.kernels(setting.software, dtype)
    return Phase(
        weight_bytes=sum(part.bytes for name, part in work.items() if name != "cache"),
        expert_bytes=work["experts"].bytes,
        kv_bytes=work["cache"].bytes,
        flops=sum(part.flops for part in work.values()),
        collectives=collectives,
        experts_read=read / rules.parts("mlp"),
        imbalance=rows * parts / (tokens * config.experts_per_token),
        calls=1,
        weights_seconds=sum(part.reading for name, part in spent.items() if name != "cache"),
        kv_seconds=spent["cache"].reading,
        compute_seconds=sum(part.computing for part in spent.values()),
        exposed_compute_seconds=sum(part.beyond for part in spent.values()),
        latency_seconds=latency,
        bandwidth_seconds=bandwidth,
        overhead_seconds=sum(part.fixed for part in spent.values()),
        measured=tuple(measured),
        beyond=max(
            [found.beyond for found in measured.values()]
            + ([kernels.beyond(expert_shape(setting))] if kernels and "experts" not in measured else [1.0])
        ),
    )


def _work_and_seconds(
    setting: Setting, call: ProgramCall, dtype: str
) -> tuple[dict[PartName, PartWork], dict[PartName, Spent], dict[PartName, Looked]]:
    """What each part of a call takes, its seconds, and which of these are those of measured tables."""
    tokens, parts = call.group_tokens(setting.rules), setting.rules.parts("experts")
    read = setting.routing.experts_read(parts, tokens)
    work = _work(setting, call, dtype, read, setting.routing.busiest_rows(parts, tokens))
    kernels = setting.hardware.kernels(setting.software, dtype)
    found = (
        _calibrated(setting, call, dtype, work, read)
        if kernels is None
        else _measured(setting, call, dtype, work, kernels)
    )
    spent: dict[PartName, Spent] = {name: Spent(*map(float, part)) for name, part in found.items()}
    measured = {} if setting.times is None else _from_tables(setting, setting.times, call)
    spent |= {name: spent[name].scaled_to(table.seconds) for name, table in measured.items()}
    return work, spent, measured


def _work(setting: Setting, call: ProgramCall, dtype: str, read: float, rows: float) -> dict[PartName, PartWork]:
    """What the busiest device reads and computes, by the parts whose reads overlap with their own products."""
    config, rules = setting.config, setting.rules
    d, cost, share = config.embed_dim, coefficients.COST, device_weights(config, rules)
    own_sequences, item = call.own_sequences(rules), ITEM_SIZES[dtype]
    own = call.own_tokens(rules)
    of_group = call.sequences // rules.parts("groups") * call.width
    routed = own if DISPATCHES[setting.dispatch].routes == "own" else of_group
    held, product = share.elements, cost.flops_per_product
    query_heads, key_heads = config.num_heads // rules.parts("q_heads"), config.num_kv_heads // rules.parts("kv_heads")
    scores = product * cost.attention_products * own * query_heads * config.head_dim * call.visited
    table = held["embed"] if config.tie_embeddings else share.multiplied["head"]
    products = (share.multiplied["attention"] + share.multiplied["mlp"]) * own + share.multiplied["router"] * routed
    dense = (held["attention"] + held["router"] + held["mlp"]) * item
    cached = cache_bytes(config, rules, call.sequences, call.positions, dtype)
    output = (table + d + cost.embedding_rows * own * d) * item  # with the last norm
    attend: Operation = "attend_step" if call.width == 1 else "attend_prompt"
    experts = product * rows * share.multiplied["experts"]
    return {
        "attention": PartWork(dense, product * products, "project", own),
        "cache": PartWork(cached, config.num_layers * scores, attend, query_heads / key_heads),
        "experts": PartWork(read * held["experts"] * item, experts, "experts", rows / read),
        "head": PartWork(output, product * own_sequences * table, "project", own_sequences),
    }


def _calibrated(
    setting: Setting, call: ProgramCall, dtype: str, work: Mapping[PartName, PartWork], read: float
) -> dict[PartName, Spent]:
    """Each part at the speed that `moejax mesh calibrate` measured, which reading is part of, or else a roofline; and
    overheads, where they were measured.
    """
    hardware = setting.hardware
    spent: dict[PartName, Spent] = {}
    for name, part in work.items():
        reading = part.bytes / (hardware.bandwidth * hardware.efficiency.bandwidth)
        computing = part.flops / hardware.speed(dtype, part.operation, part.rows)
        seconds = computing if dtype in hardware.speeds else max(reading, computing)
        reading = min(reading, seconds)
        spent[name] = Spent(reading=reading, computing=computing, beyond=seconds - reading)
    tokens = call.own_tokens(setting.rules)
    layer = hardware.layer_overhead + read * hardware.expert_overhead + tokens * hardware.token_overhead
    spent["experts"] = spent["experts"]._replace(fixed=setting.config.num_layers * layer)
    return spent


def _measured(
    setting: Setting, call: ProgramCall, dtype: str, work: Mapping[PartName, PartWork], kernels: SoftwareKernels
) -> dict[PartName, Spent]:
    """Each part by the kernels of a piece of software, as they were measured on this hardware."""
    config, rules, layers = setting.config, setting.rules, setting.config.num_layers
    device, item = setting.hardware.device(dtype), ITEM_SIZES[dtype]
    own = call.own_tokens(rules)
    products = layers * setting.hardware.software[setting.software].products
    attention, cache, head = work["attention"], work["cache"], work["head"]
    query_bytes = own * config.num_heads // rules.parts("q_heads") * config.head_dim * item
    key_bytes = own * config.num_kv_heads // rules.parts("kv_heads") * config.head_dim * item
    if call.width == 1:
        attend = kernels.step.spent(device, cache.bytes / layers, QUERY_COPIES * query_bytes)
    else:
        moved = QUERY_COPIES * query_bytes + KEY_COPIES * key_bytes
        attend = kernels.prompt.spent(device, cache.flops / layers, moved)
    between = kernels.between.spent(device, own * config.embed_dim * item)
    if setting.compiled is not None and setting.software == "moejax":
        between = between._replace(fixed=between.fixed * setting.compiled.launches(decode=call.width == 1))
    between = between.times(layers)
    return {
        "attention": kernels.product.spent(device, attention.bytes, attention.flops, products).plus(between),
        "cache": attend.times(layers),
        "experts": expert_layer(setting, call, dtype, kernels).times(len(config.moe_layers)),
        "head": kernels.product.spent(device, head.bytes, head.flops),
    }


def _from_tables(setting: Setting, times: MeasuredTimes, call: ProgramCall) -> dict[PartName, Looked]:
    """Those parts that the tables have, of all layers."""
    config, rules = setting.config, setting.rules
    heads, kv_heads = config.num_heads // rules.parts("q_heads"), config.num_kv_heads // rules.parts("kv_heads")
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": config.head_dim}
    sequences = call.own_sequences(rules)
    if call.width == 1:
        attend = times.step(**shape, sequences=sequences, positions=call.positions)
    else:
        attend = (
            times.prompt(**shape, sequences=sequences, length=call.tokens) if call.positions == call.width else None
        )
    experts = times.expert_layer(
        inputs=config.embed_dim,
        width=expert_shape(setting).width * rules.parts("mlp"),
        chosen=config.experts_per_token,
        experts=config.num_experts,
        tensor=rules.parts("mlp"),
        parts=rules.parts("experts"),
        tokens=call.group_tokens(rules),
    )
    layers: tuple[tuple[PartName, Looked | None, int], ...] = (
        ("cache", attend, config.num_layers),
        ("experts", experts, len(config.moe_layers)),
    )
    return {name: Looked(count * one.seconds, one.beyond) for name, one, count in layers if one is not None}


def expert_shape(setting: Setting) -> Shape:
    """A layer's experts on one device."""
    config, parts = setting.config, setting.rules.parts("experts")
    elements = device_weights(config, setting.rules).elements["experts"] / max(1, len(config.moe_layers))
    return Shape.of(experts=num_places(config.num_experts, parts) // parts, inputs=config.embed_dim, elements=elements)


def expert_layer(setting: Setting, call: ProgramCall, dtype: str, kernels: SoftwareKernels) -> Spent:
    """One MoE layer without its collectives, on the busiest device."""
    config, rules = setting.config, setting.rules
    parts, tokens = rules.parts("experts"), call.group_tokens(rules)
    shape = expert_shape(setting)
    terms = kernels.experts_for(shape)
    load = DeviceLoad.of(tokens, config.experts_per_token, setting.routing.busiest(parts, tokens), terms.tiles)
    return terms.spent(setting.hardware.device(dtype), shape, load, ITEM_SIZES[dtype])


def _repeated(phase: Phase, times: int) -> Phase:
    """The same call so many times."""
    counted = {name: times * getattr(phase, name) for name in SUMMED}
    return replace(phase, calls=times * phase.calls, collectives=phase.collectives * times, **counted)


def _and(first: Phase, second: Phase) -> Phase:
    """Both, one after the other; what is expected per call is the mean."""
    calls = first.calls + second.calls

    def mean(name: str) -> float:
        return (getattr(first, name) * first.calls + getattr(second, name) * second.calls) / calls

    return replace(
        first,
        calls=calls,
        collectives=first.collectives + second.collectives,
        measured=tuple(part for part in first.measured if part in second.measured),
        beyond=max(first.beyond, second.beyond),
        experts_read=mean("experts_read"),
        imbalance=mean("imbalance"),
        **{name: getattr(first, name) + getattr(second, name) for name in SUMMED},
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
