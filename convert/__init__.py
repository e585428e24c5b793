"""Named tensors of a checkpoint on disk: read one by one, checked before they are believed, and converted.

This package knows no model: tables of names and expected shapes are handed in as data. Importing it imports no JAX;
what reads or writes an Orbax checkpoint does.
"""

from convert.conversion import Conversion, Report, refuse_unfinished, run
from convert.dtypes import FLOAT_DTYPES
from convert.errors import CheckpointError
from convert.fused import Fused, split_fused
from convert.header import TensorInfo
from convert.items import ArrayPlan, Item, Place
from convert.manifest import Manifest, read_manifest
from convert.mapping import Ignore, Plan, plan
from convert.orbax_folder import OrbaxFolder
from convert.orbax_target import OrbaxTarget
from convert.safetensors_folder import SafetensorsFolder
from convert.safetensors_target import SafetensorsTarget
from convert.source import TensorSource

__all__ = [
    # reading
    "CheckpointError",
    "Manifest",
    "OrbaxFolder",
    "SafetensorsFolder",
    "TensorInfo",
    "TensorSource",
    "read_manifest",
    "refuse_unfinished",
    # tables of names
    "Fused",
    "Ignore",
    "Plan",
    "Place",
    "plan",
    "split_fused",
    # converting
    "ArrayPlan",
    "Conversion",
    "FLOAT_DTYPES",
    "Item",
    "OrbaxTarget",
    "Report",
    "SafetensorsTarget",
    "run",
]
