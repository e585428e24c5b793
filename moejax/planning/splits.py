"""Which splits a comparison has: every mesh of so many devices, with every dispatch that differs on it. No JAX."""

from collections.abc import Iterator

from moejax._sharding import MeshConfig, Rules, mesh_shapes
from moejax._sharding.collectives import Collective
from moejax.families.config import ModelConfig
from moejax.moe.split import (
    DISPATCHES,
    ONE_FOR_ALL,
    DispatchName,
    Split,
    can_split,
    choose_dispatch,
    dispatch_name,
    make_rules,
)
from moejax.planning.communication import Tokens, moe_collectives

EVERY_DISPATCH = "all"
MOST_DEVICES = 65_536


def check_dispatch(dispatch: str) -> None:
    """Raises ValueError for anything that is neither a dispatch, "auto" nor "all"."""
    if dispatch not in (EVERY_DISPATCH, "auto"):
        dispatch_name(dispatch, others=(EVERY_DISPATCH, "auto"))


def check_devices(devices: int) -> None:
    """Raises ValueError for anything but a number of devices."""
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        raise ValueError(f"devices must be a whole number of at least 1, got {devices!r}")
    if devices > MOST_DEVICES:
        raise ValueError(f"devices must be at most {MOST_DEVICES:,}, got {devices:,.6g}")


def splits(config: ModelConfig, devices: int, dispatch: str) -> Iterator[tuple[Split, str | None]]:
    """Every mesh of `devices` devices with its dispatches, and why the model cannot be split so, None where it can.

    Where one device of a group has all experts nothing has to be dispatched: dispatches by which neither a place nor a
    collective differs are one split there. A mesh over which the model does not divide is listed once too.

    Raises:
        ValueError: for no devices or too many, or an unknown dispatch.
    """
    check_devices(devices)
    check_dispatch(dispatch)
    for mesh in mesh_shapes(devices):
        names = _dispatches(config, mesh, dispatch)
        try:
            make_rules(config, mesh, names[0])
        except ValueError as error:
            yield Split(mesh=mesh, dispatch=names[0], remark=None), str(error)
            continue
        yield from ((Split(mesh=mesh, dispatch=name, remark=None), None) for name in names)


def _dispatches(config: ModelConfig, mesh: MeshConfig, dispatch: str) -> list[DispatchName]:
    """Those to list: of several that are predicted alike, the first."""
    if not can_split(config, mesh):
        return [ONE_FOR_ALL]
    asked: list[DispatchName] = list(DISPATCHES)
    if dispatch != EVERY_DISPATCH:
        asked = [choose_dispatch(config, mesh)[0] if dispatch == "auto" else dispatch_name(dispatch)]
    if mesh.expert > 1:
        return asked
    first: dict[tuple[Rules, tuple[Collective, ...]], DispatchName] = {}
    for name in (ONE_FOR_ALL, *asked):
        first.setdefault(_told_apart_by(config, mesh, name), name)
    return list(dict.fromkeys(first[_told_apart_by(config, mesh, name)] for name in asked))


def _told_apart_by(config: ModelConfig, mesh: MeshConfig, name: DispatchName) -> tuple[Rules, tuple[Collective, ...]]:
    """All that a prediction takes from a dispatch: where things are, and what a layer exchanges."""
    rules = make_rules(config, mesh, name)
    tokens = Tokens(sequences=rules.parts("batch") * rules.parts("groups"), length=1)
    return rules, tuple(moe_collectives(config, rules, name, tokens, "bfloat16"))
