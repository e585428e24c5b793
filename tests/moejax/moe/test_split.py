"""How models are split over meshes: whatever their sizes, they divide or are refused, and nothing is hidden."""

import dataclasses
import math
import random
import re
from collections.abc import Iterator
from itertools import product
from typing import get_args

import pytest

from moejax._sharding import LogicalAxis, MeshAxes, MeshConfig, Rules
from moejax.families.config import ModelConfig
from moejax.families.kv_cache import cache_placements
from moejax.families.table import named_configs, parameters_of
from moejax.model.structure import make_parallel, make_structure
from moejax.moe.split import DISPATCHES, DispatchName, choose_dispatch, dispatch_name, make_rules
from moejax.weights.counts import num_places
from tests.messages import refuses, says

NAMES: tuple[DispatchName, ...] = get_args(DispatchName)
BASE = ModelConfig(
    vocab_size=96,
    embed_dim=16,
    num_layers=1,
    num_heads=8,
    num_kv_heads=4,
    head_dim=4,
    num_experts=8,
    experts_per_token=2,
    expert_dim=24,
    max_position_embeddings=64,
)


def random_config(rng: random.Random) -> ModelConfig:
    """Sizes that often divide and often do not, odd numbers of heads and of queries per key among them."""
    experts, kv_heads = rng.choice([1, 2, 3, 4, 6, 8, 16, 60]), rng.choice([1, 2, 3, 4, 5, 6, 8])
    return dataclasses.replace(
        BASE,
        vocab_size=rng.choice([7, 48, 96, 97, 100, 32000]),
        num_heads=kv_heads * rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 12]),
        num_kv_heads=kv_heads,
        num_experts=experts,
        experts_per_token=rng.randint(1, min(4, experts)),
        expert_dim=rng.choice([8, 12, 24, 36, 48, 50, 96]),
        tie_embeddings=rng.random() < 0.3,
    )


def random_mesh(rng: random.Random) -> MeshConfig:
    return MeshConfig(
        data=rng.choice([1, 1, 2, 3]), expert=rng.choice([1, 2, 3, 4, 6, 8]), tensor=rng.choice([1, 2, 3, 4, 5, 6, 8])
    )


def cases(count: int, seed: int) -> Iterator[tuple[ModelConfig, MeshConfig, DispatchName]]:
    rng = random.Random(seed)
    for _ in range(count):
        yield random_config(rng), random_mesh(rng), rng.choice(NAMES)


def refusal(config: ModelConfig, mesh: MeshConfig) -> tuple[str, tuple[object, ...]] | None:
    """The mesh axis over which a model must be refused, and what the message names; None where it divides."""
    if config.num_experts < mesh.expert:
        return "expert", ("experts", config.num_experts, f"expert = {mesh.expert}", mesh)
    if config.expert_dim % mesh.tensor:
        return "tensor", ("expert_dim", config.expert_dim, f"tensor = {mesh.tensor}", mesh)
    return None


def test_a_model_divides_or_is_refused_by_name() -> None:
    """With a size to use instead, which then works."""
    outcomes = {True: 0, False: 0}
    for config, mesh, dispatch in cases(3000, seed=0):
        expected = refusal(config, mesh)
        outcomes[expected is None] += 1
        if expected is None:
            make_rules(config, mesh, dispatch)
            continue
        axis, facts = expected
        with refuses(ValueError, *facts) as caught:
            make_rules(config, mesh, dispatch)
        *_, size = re.findall(rf"\b{axis}=(\d+)", str(caught.value))
        smaller = dataclasses.replace(mesh, **{axis: int(size)})
        assert int(size) < mesh.shape[axis], "the advice is another size"  # type: ignore[index]
        again = refusal(config, smaller)
        assert again is None or again[0] != axis
    assert min(outcomes.values()) > 500, "random cases that say little"


def test_every_array_of_a_model_that_is_not_refused_divides() -> None:
    """Parameters of every layout and the cache; a part per device as JAX has it, whole heads, nothing padded, and no
    copy that the placements do not tell.
    """
    checked = 0
    for config, mesh, dispatch in cases(260, seed=1):
        if refusal(config, mesh):
            continue
        checked += 1
        parallel = make_parallel(config, mesh.abstract(), dispatch)
        structure = make_structure(config, "blocked" if checked % 2 else "dense", "float32", parallel)
        rows = 2 * parallel.rules.parts("batch")
        placements = structure.placements()
        placements += cache_placements(config, parallel.rules, rows, 16, "bfloat16")
        assert len(placements) == len(structure.abstract) - 1 + 2 * config.num_layers
        for one in placements:
            shape = parallel.sharding(*one.axes).shard_shape(one.shape)
            assert one.local_shape == shape
            copies = math.prod(mesh.shape[axis] for axis in one.replicated_over)
            assert one.bytes_per_device * mesh.size == one.bytes_total * copies, one.path
            for axis, size in zip(one.axes, one.local_shape, strict=True):
                if axis in ("q_heads", "kv_heads") and not one.path.startswith("cache"):
                    assert size % config.head_dim == 0, f"{one.path}: a head is split"
        weights = sum(one.bytes_total for one in placements if not one.path.startswith("cache"))
        empty = num_places(config.num_experts, mesh.expert) - config.num_experts
        assert weights == 4 * (
            parameters_of(config).total + config.num_layers * empty * parameters_of(config).per_expert
        )
    assert checked > 80


def test_expert_weights_are_never_copied_within_a_group() -> None:
    for config, mesh, dispatch in cases(400, seed=2):
        if not refusal(config, mesh):
            rules = make_rules(config, mesh, dispatch)
            whole = num_places(config.num_experts, mesh.expert), config.expert_dim, 16
            assert rules.local_shape(("experts", "mlp", "embed"), whole) == (
                -(-config.num_experts // mesh.expert),
                config.expert_dim // mesh.tensor,
                16,
            )


def test_a_batch_that_does_not_divide_is_refused_by_name() -> None:
    """The engine pads batches; nobody else may."""
    rules = make_rules(BASE, MeshConfig(data=2, expert=4), "gather")
    with refuses(ValueError, "cache.0.keys", "batch", "12", "data x expert = 8", "data=2,expert=4,tensor=1"):
        cache_placements(BASE, rules, 12, 16, "float32")


# --- heads and vocabulary ---


def part_of(axes: MeshAxes, device: dict[str, int], mesh: MeshConfig) -> int:
    """Which part of an array axis a device holds; the first mesh axis is the outermost."""
    index = 0
    for axis in axes:
        index = index * mesh.shape[axis] + device[axis]
    return index


def heads_of(logical: LogicalAxis, count: int, rules: Rules, device: dict[str, int]) -> range:
    each = count // rules.parts(logical)
    first = part_of(rules[logical], device, rules.mesh) * each
    return range(first, first + each)


def test_every_device_has_the_key_value_heads_of_its_query_heads() -> None:
    """Device by device; and together the devices of a group have all query heads."""
    shorter = cut = 0
    for config, mesh, dispatch in cases(1500, seed=3):
        if refusal(config, mesh):
            continue
        rules = make_rules(config, mesh, dispatch)
        group = config.num_heads // config.num_kv_heads
        seen: set[int] = set()
        for e, t in product(range(mesh.expert), range(mesh.tensor)):
            device = {"expert": e, "tensor": t}
            queries = heads_of("q_heads", config.num_heads, rules, device)
            held = heads_of("kv_heads", config.num_kv_heads, rules, device)
            assert {query // group for query in queries} <= set(held), f"{config}, {mesh}, {dispatch}, {device}"
            seen |= set(queries)
        assert seen == set(range(config.num_heads))
        shorter += len(rules["kv_heads"]) < len(rules["q_heads"])
        queries_each = config.num_heads // rules.parts("q_heads")
        cut += queries_each % group != 0 and group % queries_each != 0
    assert shorter > 30 and cut > 5, "the hard cases did not come up"


@pytest.mark.parametrize(
    ("sizes", "mesh", "dispatch", "q_heads", "kv_heads", "vocab"),
    [
        (
            (8, 8, 96),
            "expert=4,tensor=2",
            "replicated",
            ("expert", "tensor"),
            ("expert", "tensor"),
            ("expert", "tensor"),
        ),
        # Key/value heads over expert would be outside of query heads over tensor: those stay whole.
        ((6, 2, 97), "expert=4,tensor=2", "replicated", ("tensor",), ("tensor",), ()),
        # The key/value heads' axis comes first, so that a device's queries are those of its keys.
        ((8, 2, 96), "expert=4,tensor=2", "replicated", ("tensor", "expert"), ("tensor",), ("expert", "tensor")),
        # Over expert they have 4 parts, over tensor 2: the cache is repeated twice and not four times.
        ((8, 4, 96), "expert=4,tensor=2", "replicated", ("expert", "tensor"), ("expert",), ("expert", "tensor")),
        ((12, 3, 98), "expert=3,tensor=2", "replicated", ("expert", "tensor"), ("expert",), ("tensor",)),
        ((4, 1, 96), "expert=2,tensor=2", "replicated", ("expert", "tensor"), (), ("expert", "tensor")),
        ((5, 5, 95), "expert=4,tensor=2", "replicated", (), (), ()),
        ((8, 8, 96), "expert=4,tensor=2", "gather", ("tensor",), ("tensor",), ("tensor",)),
        ((8, 1, 97), "expert=4,tensor=2", "all_to_all", ("tensor",), (), ()),
        ((8, 8, 96), "data=4,expert=1,tensor=1", "replicated", (), (), ()),
    ],
)
def test_over_which_axes_heads_and_vocabulary_are_split(
    sizes: tuple[int, int, int],
    mesh: str,
    dispatch: DispatchName,
    q_heads: MeshAxes,
    kv_heads: MeshAxes,
    vocab: MeshAxes,
) -> None:
    """The first of (expert, tensor), (tensor), (expert) that divides; under `gather` and `all_to_all` only (tensor).

    Of key/value heads the one of most devices within the query heads' axes.
    """
    config = dataclasses.replace(
        BASE, num_heads=sizes[0], num_kv_heads=sizes[1], vocab_size=sizes[2], num_experts=24, expert_dim=24
    )
    rules = make_rules(config, MeshConfig.parse(mesh), dispatch)
    assert (rules["q_heads"], rules["kv_heads"], rules["vocab"]) == (q_heads, kv_heads, vocab)


def test_no_other_split_repeats_the_cache_less() -> None:
    """Among the dispatch's choices within the query heads' axes. Mixtral 8x7B on 16 devices repeats it twice."""
    for config, mesh, dispatch in cases(600, seed=5):
        if refusal(config, mesh):
            continue
        rules = make_rules(config, mesh, dispatch)
        for axes in DISPATCHES[dispatch].dense:
            if {axis for axis in axes if mesh.shape[axis] > 1} <= set(rules["q_heads"]):
                if config.num_kv_heads % mesh.extent(axes) == 0:
                    assert mesh.extent(axes) <= rules.parts("kv_heads")
    rules = make_rules(named_configs()["mixtral-8x7b"], MeshConfig(expert=8, tensor=2), "replicated")
    assert (rules["q_heads"], rules["kv_heads"]) == (("expert", "tensor"), ("expert",))


@pytest.mark.parametrize(
    ("dispatch", "batch"),
    [("replicated", ("data",)), ("gather", ("data", "expert")), ("all_to_all", ("data", "expert"))],
)
def test_where_tokens_are_between_layers(dispatch: DispatchName, batch: MeshAxes) -> None:
    rules = make_rules(BASE, MeshConfig(data=2, expert=4, tensor=2), dispatch)
    assert rules["batch"] == batch
    assert rules["groups"] == ("data",) and rules["embed"] == rules["sequence"] == ()


# --- the choice and the names ---


def test_what_auto_stands_for() -> None:
    """`replicated` unless devices would repeat each other's attention; the reason names what decided."""
    for config, mesh, _ in cases(1000, seed=4):
        name, reason = choose_dispatch(config, mesh)
        group = mesh.expert * mesh.tensor
        divides = config.num_heads % group == 0
        assert name == ("replicated" if mesh.expert == 1 or divides else "gather")
        if mesh.expert == 1:
            assert "expert=1" in reason
        else:
            says(reason, config.num_heads, f"expert x tensor = {group}")
            assert ("do not divide" in reason) != divides
        assert "\n" not in reason


def test_mixtral_is_replicated_on_every_mesh_that_shares_its_heads() -> None:
    for config in named_configs().values():
        assert choose_dispatch(config, MeshConfig(expert=8))[0] == "replicated"
        assert choose_dispatch(config, MeshConfig(expert=8, tensor=14))[0] == "gather"


def test_names_of_dispatches() -> None:
    assert set(NAMES) == set(DISPATCHES)
    assert [dispatch_name(name) for name in NAMES] == list(NAMES)
    with refuses(ValueError, "'alltoall'", ", ".join(("auto", *DISPATCHES)), "'all_to_all'"):
        dispatch_name("alltoall")
