"""Named tensors of a checkpoint on disk: read one by one, checked before they are believed, and converted.

This package knows no model: tables of names and expected shapes are handed in as data. Importing it imports neither JAX
nor the libraries of the formats: the first use of a folder imports its own, and writing an Orbax checkpoint JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from convert.conversion import Conversion, Report, refuse_unfinished, run
from convert.dtypes import FLOAT_DTYPES
from convert.errors import CheckpointError
from convert.fused import Fused, split_fused
from convert.items import ArrayPlan, Item, Place
from convert.manifest import Manifest, read_manifest
from convert.mapping import Ignore, TensorPlan, plan
from convert.renamed import Renamed, rename
from convert.source import TensorSource
from convert.tensor_info import TensorInfo

if TYPE_CHECKING:
    from convert.orbax_folder import OrbaxFolder
    from convert.orbax_target import OrbaxTarget
    from convert.safetensors_folder import SafetensorsFolder
    from convert.safetensors_target import SafetensorsTarget

_FORMATS = {
    "OrbaxFolder": "convert.orbax_folder",
    "OrbaxTarget": "convert.orbax_target",
    "SafetensorsFolder": "convert.safetensors_folder",
    "SafetensorsTarget": "convert.safetensors_target",
}

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
    "Place",
    "Renamed",
    "TensorPlan",
    "plan",
    "rename",
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


def __getattr__(name: str) -> Any:
    if name not in _FORMATS:
        raise AttributeError(f"module 'convert' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_FORMATS[name]), name)
