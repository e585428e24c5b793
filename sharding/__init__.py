"""Where arrays live: meshes, the rules that split arrays over them, and the memory devices have.

This package knows no model. `LogicalAxis` is the vocabulary in which a model declares what each axis of each
parameter and cache *is*; `Rules` say which mesh axis that is split over. Importing it imports no JAX.
"""

from moejax._sharding.devices import chosen_devices
from moejax._sharding.logical import LOGICAL_AXES, LogicalAxes, LogicalAxis, check_logical_axes
from moejax._sharding.memory import DeviceMemory, device_memory
from moejax._sharding.mesh import MESH_AXES, MeshAxes, MeshAxis, MeshConfig, mesh_config, mesh_shapes
from moejax._sharding.report import Placement, bytes_per_device, describe, placement
from moejax._sharding.rules import Rules, Spec, partition_spec

__all__ = [
    "LOGICAL_AXES",
    "MESH_AXES",
    "DeviceMemory",
    "LogicalAxes",
    "LogicalAxis",
    "MeshAxes",
    "MeshAxis",
    "MeshConfig",
    "Placement",
    "Rules",
    "Spec",
    "bytes_per_device",
    "check_logical_axes",
    "chosen_devices",
    "describe",
    "device_memory",
    "mesh_config",
    "mesh_shapes",
    "partition_spec",
    "placement",
]
