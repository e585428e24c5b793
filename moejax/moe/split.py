"""How a model is split over a mesh: the table of dispatches, and the rules that follow from one. Imports no JAX.

A dispatch is how tokens reach the device that owns their expert. It decides everything else: where tokens are between
layers, and so over which axes heads, cache and vocabulary may be split. Adding one: a file in `moejax/moe/`, a row in
`DISPATCHES`, its name in `DispatchName`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

from moejax._sharding import LogicalAxis, MeshAxes, MeshConfig, Rules, mesh_config
from moejax._sharding.collectives import CollectiveKind
from moejax.families.config import ModelConfig
from moejax.weights.counts import num_places

DispatchName = Literal["replicated", "gather", "all_to_all"]
FEWEST_ROWS, MOST_MICRO_BATCHES = 64, 8  # of a micro-batch on a device; of a call
ONE_FOR_ALL: DispatchName = "replicated"  # what dispatches that are alike are called, where experts are not apart


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A collective of every MoE layer under one dispatch, in symbols.

    over: the logical axes whose mesh axes it runs over.  tokens: whose tokens it moves, a device's `own` or those of
    its `group`; what an all-gather results in, and what the others are given.
    routing: whether it moves each token's expert ids and weights (2 A numbers of 4 bytes) instead of D activations.
    """

    kind: CollectiveKind
    over: tuple[LogicalAxis, ...]
    tokens: Literal["own", "group"]
    routing: bool = False


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """Where things are under one dispatch.

    tokens: mesh axes that the batch is split over between layers; all others hold every token of their rows.
    dense: what query heads, key/value heads and the vocabulary may be split over. Query heads and vocabulary take the
        first that divides them, key/value heads the one of most devices among those within the query heads' axes.
    body: "module:function", what one device does with its tokens in an MoE layer (see `moejax.moe.dispatch.Body`).
    unreduced: the logical axes over whose mesh axes the body leaves its partial sums to be summed.
    transfers: the collectives of the layer, by which it is predicted and checked.
    routes: whose tokens a device chooses experts for, its `own` or those of its `group`.
    """

    tokens: MeshAxes
    dense: tuple[MeshAxes, ...]
    body: str
    unreduced: tuple[LogicalAxis, ...]
    transfers: tuple[Transfer, ...]
    routes: Literal["own", "group"] = "group"


DISPATCHES: dict[DispatchName, Dispatch] = {
    "replicated": Dispatch(
        tokens=("data",),
        dense=(("expert", "tensor"), ("tensor",), ("expert",)),
        body="moejax.moe.replicated:replicated",
        unreduced=("experts", "mlp"),
        transfers=(Transfer(kind="all-reduce", over=("experts", "mlp"), tokens="group"),),
    ),
    "gather": Dispatch(
        tokens=("data", "expert"),
        dense=(("tensor",),),
        body="moejax.moe.gather:gather",
        unreduced=("mlp",),
        transfers=(
            Transfer(kind="all-gather", over=("experts",), tokens="group"),
            Transfer(kind="reduce-scatter", over=("experts",), tokens="group"),
            Transfer(kind="all-reduce", over=("mlp",), tokens="own"),
        ),
    ),
    "all_to_all": Dispatch(
        tokens=("data", "expert"),
        dense=(("tensor",),),
        body="moejax.moe.all_to_all:all_to_all",
        unreduced=("mlp",),
        transfers=(
            Transfer(kind="all-to-all", over=("experts",), tokens="group"),
            Transfer(kind="all-to-all", over=("experts",), tokens="group", routing=True),
            Transfer(kind="all-to-all", over=("experts",), tokens="group"),
            Transfer(kind="all-reduce", over=("mlp",), tokens="own"),
        ),
        routes="own",
    ),
}


def make_rules(config: ModelConfig, mesh: MeshConfig, dispatch: DispatchName) -> Rules:
    """Which mesh axes each logical axis of this model is split over.

    Key/value heads are split over a part of the axes of the query heads, outermost, so that every device holds the
    key/value heads that its query heads use; of the parts that divide them, over the one of most devices, because that
    repeats the cache least and costs no exchange.

    Raises:
        ValueError: when there are fewer experts than devices along `expert`, or their hidden axis does not divide,
            naming axis, size and mesh.
    """
    row = DISPATCHES[dispatch]
    if problems := _uneven(config, mesh):
        raise ValueError(problems[0])
    queries = _first_that_divides(config.num_heads, mesh, row.dense)
    within = [axes for axes in row.dense if set(axes) <= set(queries)]
    keys = _first_that_divides(config.num_kv_heads, mesh, sorted(within, key=mesh.extent, reverse=True))
    return Rules.of(
        mesh,
        batch=row.tokens,
        groups=("data",),
        experts=("expert",),
        mlp=("tensor",),
        vocab=_first_that_divides(config.vocab_size, mesh, row.dense),
        hidden=_first_that_divides(config.dense_dim or 0, mesh, row.dense),
        q_heads=keys + _without(queries, keys),
        kv_heads=keys,
    )


def choose_dispatch(config: ModelConfig, mesh: MeshConfig) -> tuple[DispatchName, str]:
    """The dispatch that `auto` stands for on this mesh, and why.

    `replicated` needs no batch that divides over expert, and splits attention over every device of the group.
    Where the query heads cannot be split so far, devices would repeat each other's attention: `gather` then gives each
    its own rows.
    """
    group = mesh.expert * mesh.tensor
    if mesh.expert == 1:
        return ONE_FOR_ALL, "with expert=1 the tokens are where their experts are"
    if config.num_heads % group == 0:
        return "replicated", (
            f"the {config.num_heads} query heads divide over expert x tensor = {group}, and a batch need not divide "
            "over expert"
        )
    return "gather", (
        f"the {config.num_heads} query heads do not divide over expert x tensor = {group}, "
        "so each device takes rows of its own instead of repeating the others' attention"
    )


@dataclass(frozen=True, kw_only=True)
class Split:
    """A mesh and a dispatch by which a model can be split.

    remark: what "auto" picked and why, for whoever asked; None where nothing was picked.
    """

    mesh: MeshConfig
    dispatch: DispatchName
    remark: str | None


def resolve_split(config: ModelConfig, mesh: MeshConfig | str | None, dispatch: str) -> Split:
    """The split that `moejax.load` uses, from what was asked for; checked without any device.

    Raises:
        ValueError: for a mesh or a dispatch that does not exist or cannot serve this model.
    """
    shape = mesh_config(mesh)
    name, reason = choose_dispatch(config, shape) if dispatch == "auto" else (dispatch_name(dispatch), None)
    make_rules(config, shape, name)
    remarks = [f"dispatch {name} on mesh {shape}: {reason}"] if reason and shape.size > 1 else []
    remarks += [padding] if (padding := padding_remark(config, shape)) else []
    return Split(mesh=shape, dispatch=name, remark="; ".join(remarks) or None)


def micro_batch_count(count: object) -> int:
    """`count`, as a number of micro-batches.

    Raises:
        ValueError: for what is none.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_MICRO_BATCHES:
        raise ValueError(f"micro_batches must be a whole number from 1 to {MOST_MICRO_BATCHES}, got {count!r}")
    return count


def padding_remark(config: ModelConfig, mesh: MeshConfig) -> str | None:
    """What is left empty where the experts do not divide over `expert`; None where nothing is."""
    places = num_places(config.num_experts, mesh.expert)
    if places == config.num_experts:
        return None
    return (
        f"{config.num_experts} experts do not divide over expert = {mesh.expert}, so each layer has {places} places "
        f"for them and leaves {places - config.num_experts} of them empty"
    )


def can_split(config: ModelConfig, mesh: MeshConfig) -> bool:
    """Whether `make_rules` takes this mesh for this model."""
    return not _uneven(config, mesh)


def dispatch_name(name: str, *, others: tuple[str, ...] = ("auto",)) -> DispatchName:
    """Checks the name of a dispatch; `others` may be given in its place.

    Raises:
        ValueError: for an unknown name.
    """
    for known in get_args(DispatchName):
        if name == known:
            return known
    near = get_close_matches(str(name), (*others, *DISPATCHES), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown dispatch {name!r}: the known ones are {', '.join((*others, *DISPATCHES))}{hint}")


def _first_that_divides(size: int, mesh: MeshConfig, candidates: Iterable[MeshAxes]) -> MeshAxes:
    return next((axes for axes in candidates if size % mesh.extent(axes) == 0), ())


def _without(axes: MeshAxes, others: MeshAxes) -> MeshAxes:
    return tuple(axis for axis in axes if axis not in others)


def _uneven(config: ModelConfig, mesh: MeshConfig) -> list[str]:
    """Why a mesh cannot split a model, one sentence each. Experts need not divide: places are left empty."""
    found = []
    if config.num_experts < mesh.expert:
        found.append(
            f"the number of experts is {config.num_experts}, fewer than the devices along mesh axis expert = "
            f"{mesh.expert} of {mesh}; use expert={config.num_experts} or less"
        )
    if config.expert_dim % mesh.tensor:
        divisor = next(i for i in range(mesh.tensor, 0, -1) if config.expert_dim % i == 0)
        found.append(
            f"the experts' hidden axis (expert_dim) is {config.expert_dim}, which does not divide over mesh axis "
            f"tensor = {mesh.tensor} of {mesh}; use tensor={divisor} or another divisor of {config.expert_dim}"
        )
    return found
