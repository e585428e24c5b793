"""Named tensors of a checkpoint on disk: what is there, checked before it is believed, and read one by one.

This package knows no model: tables of names and expected shapes are handed in as data, and it imports no JAX.
"""

from convert.errors import CheckpointError
from convert.header import TensorInfo
from convert.mapping import Ignore, Plan, Rule, plan
from convert.safetensors_folder import SafetensorsFolder

__all__ = ["CheckpointError", "Ignore", "Plan", "Rule", "SafetensorsFolder", "TensorInfo", "plan"]
