"""Which devices a mesh is made of: those that were named, those of a mesh of JAX's own, or those that JAX has."""

from collections.abc import Sequence
from typing import Any

from moejax._sharding.mesh import devices_of_mesh


def chosen_devices(devices: Sequence[Any] | None, mesh: Any = None) -> list[Any]:
    """The devices to choose from, in the order in which a mesh takes them.

    Args:
        devices: those that were named, or None: the ones of `mesh`, else the default device and the others of its
            platform, where the program has set `jax.default_device`, else all.
        mesh: in whatever form it was given.

    Raises:
        ValueError: for what is no device, a device named twice, devices beside a mesh that has its own, or a platform
            other than the one that JAX started with.
    """
    import jax

    own = devices_of_mesh(mesh)
    if own is not None:
        if devices is not None:
            raise ValueError("got devices and a jax.sharding.Mesh, which has devices of its own: give one of the two")
        found = own
    elif devices is not None:
        found = _checked(devices)
    else:
        found = _default_first()
    if jax.process_count() > 1 and len(found) != jax.device_count():
        raise ValueError(
            f"got {len(found)} of the {jax.device_count()} devices of {jax.process_count()} processes; with several "
            "processes a mesh must take all of them"
        )
    platform, started = found[0].platform, jax.default_backend()
    if platform != started:
        raise ValueError(
            f"got the device {found[0]}, but JAX started with {started} and programs are made for that: "
            f"set JAX_PLATFORMS={platform} before the first use of JAX"
        )
    return found


def _checked(devices: Sequence[Any]) -> list[Any]:
    import jax

    found = list(devices) if isinstance(devices, Sequence) and not isinstance(devices, str) else [devices]
    if not found or not all(isinstance(device, jax.Device) for device in found):
        raise ValueError(f"devices must be a list of JAX's devices, as in jax.devices()[:2], got {devices!r:.80}")
    if len(set(found)) < len(found):
        raise ValueError(f"devices names {next(one for one in found if found.count(one) > 1)} twice")
    return found


def _default_first() -> list[Any]:
    """All devices, the one that the program has made its default first."""
    import jax

    config: Any = jax.config  # whose settings type checkers do not know
    default = config.jax_default_device
    if default is None or jax.process_count() > 1:  # of several processes, each has a default of its own
        return jax.devices()
    if isinstance(default, str):
        return jax.devices(default)
    return [default, *(device for device in jax.devices(default.platform) if device != default)]
