"""Where arrays live: the names of array axes that can be split over devices, and the memory devices have.

This package knows no model. `LogicalAxis` is the vocabulary in which a model declares what each axis of each
parameter and cache *is*; which mesh axis that is split over is decided elsewhere, from the same vocabulary.
"""

from sharding.logical import LOGICAL_AXES, LogicalAxes, LogicalAxis, check_logical_axes
from sharding.memory import DeviceMemory, device_memory

__all__ = ["LOGICAL_AXES", "DeviceMemory", "LogicalAxes", "LogicalAxis", "check_logical_axes", "device_memory"]
