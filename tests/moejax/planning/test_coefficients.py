"""Every coefficient of the cost model, doubled one at a time, is noticed by something that counts.

Counts are of a real model whose operations are executed one by one, of its arrays, and of loops written out by hand:
none of them knows the formulas.
"""

import ast
import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import moejax
from moejax._sharding import MeshConfig
from moejax._sharding.collectives import Collective, wire_elements
from moejax.families.config import ModelConfig
from moejax.model.cache import empty_cache
from moejax.moe.parallel import Parallel
from moejax.moe.split import make_rules
from moejax.planning import calls, coefficients, communication, costs, footprint, links
from moejax.planning.calls import ProgramCall, decode_call, prefill_calls
from moejax.planning.coefficients import COST, Coefficients
from moejax.planning.communication import Tokens, moe_collectives
from moejax.planning.costs import Setting, predict_call
from moejax.planning.footprint import activation_bytes, cache_bytes, weight_bytes
from moejax.planning.hardware import Hardware, Link
from moejax.planning.links import exchange_seconds
from moejax.planning.models import model_config
from moejax.planning.routing import RoutingModel
from moejax.planning.rows import Phase
from moejax.planning.workload import Workload
from tests.moejax.counting import Counts, count

# Every size is another one, and every token takes every expert: what is read and computed does not depend on weights.
SIZES = {"hidden_size": 12, "intermediate_size": 14, "num_hidden_layers": 3, "vocab_size": 26, "head_dim": 10}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 2}
OTHERS = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_act": "silu"}
OTHERS |= {"max_position_embeddings": 512, "tie_word_embeddings": False}
BATCH, SLOTS = 16, 256  # rows that fill whole blocks of experts' rows; what a cache of 200 tokens has
DTYPE, ITEM = "float32", 4
LINK = Link(bandwidth=1e9, latency=1e-5, launch=3e-4)
HARDWARE = Hardware(
    name="primes",
    title="whose figures are all different",
    memory_bytes=10**9,
    bandwidth=7e9,
    matrix_rate={DTYPE: 11e9},
    link=LINK,
    devices_per_node=8,
    layer_overhead=2e-6,
    expert_overhead=3e-7,
    token_overhead=5e-8,
)


@dataclass(frozen=True)
class Executed:
    """A decode step of a real model: its operations as they were executed, its parameters and cache."""

    config: ModelConfig
    counts: Counts
    params: dict[str, jax.Array]
    kv_bytes: int


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    path = tmp_path_factory.mktemp("counted") / "config.json"
    path.write_text(json.dumps(SIZES | HEADS | OTHERS))
    model = moejax.load(f"random:{path}", dtype=DTYPE, expert_backend="blocked")
    held = empty_cache(model.config, BATCH, SLOTS, DTYPE, model.parallel)
    tokens, ones = jnp.arange(BATCH, dtype=jnp.int32)[:, None], jnp.ones(BATCH, jnp.int32)

    def run(params: dict, tokens: jax.Array, starts: jax.Array, cache: tuple) -> jax.Array:
        mixtral = model.merged(params)
        return mixtral.logits(mixtral(tokens, starts, ones, cache)[0])

    weights = {path: one for path, one in model.params.items() if path != "placement"}
    names = {f"{path}/{i}": array for path, one in weights.items() for i, array in enumerate(jax.tree.leaves(one))}
    with pytest.MonkeyPatch.context() as patch:  # one device holds everything: what it runs is the body itself
        patch.setattr(Parallel, "map", lambda self, body, *specs: body)
        counts = count(run, model.params, tokens, 150 * ones, held, names=names)
    kv_bytes = sum(array.nbytes for layer in held for array in (layer.k, layer.v))
    return Executed(model.config, counts, names, kv_bytes)


def predicted(step: Executed) -> Phase:
    """The same step, as `moejax mesh compare` predicts it."""
    rules = make_rules(step.config, MeshConfig(), "replicated")
    routing = RoutingModel(step.config.num_experts, step.config.experts_per_token)
    setting = Setting(config=step.config, rules=rules, dispatch="replicated", hardware=HARDWARE, routing=routing)
    call = decode_call(Workload(batch_size=BATCH, input_len=100, context=200, dtype=DTYPE), rules)
    assert (call.sequences, call.positions) == (BATCH, SLOTS)
    return predict_call(setting, call, DTYPE)


def check_products(step: Executed) -> None:
    """Matrix products that were executed, two FLOPs for each multiplication and addition."""
    assert predicted(step).flops == step.counts.flops


def check_weights(step: Executed) -> None:
    """Arrays that some operation read, whole but for the embedding: a row of it for each token."""
    read = {name: step.params[name].nbytes for name in step.counts.read}
    table = step.params["embed.table/0"]
    read["embed.table/0"] = sum(table[token].nbytes for token in range(BATCH))
    assert predicted(step).weight_bytes == sum(read.values())
    assert predicted(step).expert_bytes == sum(size for name, size in read.items() if ".experts." in name)
    rules = make_rules(step.config, MeshConfig(), "replicated")
    assert weight_bytes(step.config, rules, DTYPE) == sum(array.nbytes for array in step.params.values())


def check_cache(step: Executed) -> None:
    """Arrays of a real cache, all of which attention reads."""
    rules = make_rules(step.config, MeshConfig(), "replicated")
    assert predicted(step).kv_bytes == step.kv_bytes == cache_bytes(step.config, rules, BATCH, SLOTS, DTYPE)


def check_overheads(step: Executed) -> None:
    seconds = 0.0
    for _ in range(step.config.num_layers):
        seconds += HARDWARE.layer_overhead
        seconds += sum(HARDWARE.expert_overhead for _ in range(step.config.num_experts))
        seconds += sum(HARDWARE.token_overhead for _ in range(BATCH))
    assert predicted(step).overhead_seconds == pytest.approx(seconds)


def check_prompts(step: Executed) -> None:
    """Keys that each token of a part of a prompt sees: itself and all before it."""
    for length in (100, 400):
        workload = Workload(batch_size=2, input_len=length, context=512, dtype=DTYPE)
        for call in prefill_calls(workload, make_rules(step.config, MeshConfig(), "replicated")):
            first = call.positions - call.width
            seen = [sum(key <= query for key in range(call.positions)) for query in range(first, call.positions)]
            assert call.visited == sum(seen) / call.width


def check_activations(step: Executed) -> None:
    """Arrays that one device of data=2, expert=2, tensor=2 has at the same time; rows are split over two of them."""
    config, dtype = step.config, np.dtype(np.float16)
    d, f32 = config.embed_dim, np.dtype(np.float32)
    own, group, width = 4, 8, 3
    arrays = {
        "residual before": ((own * width, d), dtype),
        "residual after": ((own * width, d), dtype),
        "queries": ((own * width, config.num_heads // 2, config.head_dim), f32),
        "keys": ((own * width, config.num_kv_heads // 2, config.head_dim), f32),
        "values": ((own * width, config.num_kv_heads // 2, config.head_dim), f32),
        "rows of experts": ((group * width, config.experts_per_token, d), dtype),
        "results of experts": ((group * width, config.experts_per_token, d), f32),
        "their sum": ((group * width, config.experts_per_token, d), f32),
        "logits": ((own, config.vocab_size // 2), f32),
        "logits as chosen from": ((own, config.vocab_size // 2), f32),
    }
    call = ProgramCall(sequences=16, width=width, requests=16, tokens=width, positions=8, visited=8, chooses=True)
    rules = make_rules(config, MeshConfig(data=2, expert=2, tensor=2), "gather")
    found = activation_bytes(config, rules, call, "float16")
    assert found == sum(np.empty(shape, kind).nbytes for shape, kind in arrays.values())


def ring_rounds(kind: str, group: int) -> int:
    """Rounds, in each of which every device sends one of G pieces, until a collective over a ring is done.

    held: for each device, which devices' contributions to each piece it has added up.
    """
    devices, rounds = range(group), 0
    if kind == "all-to-all":
        waiting = {(sender, receiver) for sender in devices for receiver in devices if sender != receiver}
        while waiting:
            rounds += 1
            waiting -= {(sender, (sender + rounds) % group) for sender in devices}
        return rounds
    held = [[{device} for _ in devices] for device in devices]

    def send(ahead: int) -> None:
        sent = [(device + ahead) % group for device in devices]
        values = [set(held[device][sent[device]]) for device in devices]
        for device in devices:
            held[(device + 1) % group][sent[device]] |= values[device]

    if kind == "all-gather":
        held = [[set(devices) if piece == (device + 1) % group else set() for piece in devices] for device in devices]
    else:
        while not all(any(len(held[device][piece]) == group for device in devices) for piece in devices):
            send(-rounds)
            rounds += 1
    if kind == "reduce-scatter":
        return rounds
    reduced = rounds
    while not all(len(piece) == group for device in held for piece in device):
        send(1 + reduced - rounds)
        rounds += 1
    return rounds


def check_rings(step: Executed) -> None:
    for group in (2, 4, 8):
        for kind in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all"):
            one = Collective(kind=kind, axes=("expert",), elements=840, dtype=DTYPE, in_loop=False, scope="moe")
            latency, bandwidth = exchange_seconds([one, one], MeshConfig(expert=group), HARDWARE)
            rounds = ring_rounds(kind, group)
            assert latency == pytest.approx(2 * (LINK.launch + rounds * LINK.latency))
            assert bandwidth == pytest.approx(2 * rounds * 840 / group * ITEM / LINK.bandwidth)


@cache
def traced_exchange() -> list[int]:
    """Integers that one device of expert=4 gives to each all-to-all of a layer, in the program as it is traced."""
    model = moejax.load("demo", dtype=DTYPE, mesh="expert=4", dispatch="all_to_all", expert_backend="blocked")
    held = empty_cache(model.config, BATCH, SLOTS, DTYPE, model.parallel)
    tokens, starts = jnp.zeros((BATCH, 1), jnp.int32), jnp.zeros(BATCH, jnp.int32)

    def run(params: dict, tokens: jax.Array, starts: jax.Array, cache: tuple) -> jax.Array:
        return model.merged(params)(tokens, starts, jnp.ones_like(starts), cache)[0]

    traced = jax.make_jaxpr(run)(model.params, tokens, starts, held)
    found: list[Any] = [eqn.invars[0].aval for eqn in equations(traced.jaxpr) if eqn.primitive.name == "all_to_all"]
    return [aval.size for aval in found if jnp.issubdtype(aval.dtype, jnp.integer)]


def equations(jaxpr: jax.extend.core.Jaxpr) -> Iterator[jax.extend.core.JaxprEqn]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda one: hasattr(one, "eqns")):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                yield from equations(inner)


def check_routing(step: Executed) -> None:
    """Ids and weights that a token takes along."""
    config = model_config("demo")
    rules = make_rules(config, MeshConfig(expert=4), "all_to_all")
    found = moe_collectives(config, rules, "all_to_all", Tokens(sequences=BATCH, length=1), DTYPE)
    assert [one.elements for one in found if one.dtype == "int32"] * config.num_layers == traced_exchange()


CHECKS: tuple[Callable[[Executed], None], ...] = (
    check_products,
    check_weights,
    check_cache,
    check_overheads,
    check_prompts,
    check_activations,
    check_rings,
    check_routing,
)


def failing(step: Executed) -> list[str]:
    """The checks that do not hold."""
    failed = []
    for check in CHECKS:
        try:
            check(step)
        except AssertionError:
            failed.append(check.__name__)
    return failed


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_predictions_are_what_is_counted(check: Callable[[Executed], None], step: Executed) -> None:
    check(step)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Coefficients)])
def test_a_doubled_coefficient_is_noticed(name: str, step: Executed, monkeypatch: pytest.MonkeyPatch) -> None:
    doubled = dataclasses.replace(COST, **{name: 2 * getattr(COST, name)})
    monkeypatch.setattr(coefficients, "COST", doubled)
    assert failing(step), f"no check notices that {name} is {getattr(doubled, name)}"


def test_doubled_bytes_on_the_wire_are_noticed(step: Executed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their factors stand in the package of collectives."""
    monkeypatch.setattr(links, "wire_elements", lambda *given: 2 * wire_elements(*given))
    assert failing(step) == ["check_rings"]


def numbers(source: str) -> list[str]:
    """Arithmetic with a number in it that is neither 0 nor 1."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.BinOp)
        for side in (node.left, node.right)
        if isinstance(side, ast.Constant) and isinstance(side.value, (int, float)) and side.value not in (0, 1)
    ]


@pytest.mark.parametrize("module", [calls, communication, costs, footprint, links], ids=lambda module: module.__name__)
def test_formulas_have_no_numbers_besides_the_coefficients(module: ModuleType) -> None:
    assert numbers("x = 2 * y + z / 0.5 - 1") == ["2 * y", "z / 0.5"]
    assert numbers(inspect.getsource(module)) == []
