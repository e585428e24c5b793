"""Which splits a comparison has: every mesh of so many devices, with every dispatch that differs on it. No JAX."""

from collections.abc import Iterator

from moejax._sharding import MeshConfig, mesh_shapes
from moejax.families.config import ModelConfig
from moejax.moe.split import DISPATCHES, DispatchName, Split, choose_dispatch, dispatch_name, make_rules

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

    Where one device has all experts nothing has to be dispatched: one split stands for all. A mesh over which the model
    does not divide is listed once too.

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
    if mesh.expert == 1:
        return ["replicated"]
    if dispatch == EVERY_DISPATCH:
        return list(DISPATCHES)
    return [choose_dispatch(config, mesh)[0] if dispatch == "auto" else dispatch_name(dispatch)]
