"""Named tensors of a checkpoint on disk: read one by one, checked before they are believed, and converted.

This package knows no model: tables of names and expected shapes are handed in as data. Importing it imports neither JAX
nor the libraries of the formats: the first use of a folder imports its own, and writing an Orbax checkpoint JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moejax._convert.conversion import Conversion, Report, refuse_unfinished, run
from moejax._convert.dtypes import FLOAT_DTYPES
from moejax._convert.errors import CheckpointError
from moejax._convert.fused import Fused, split_fused
from moejax._convert.items import ArrayPlan, Item, Place
from moejax._convert.manifest import Manifest, read_manifest
from moejax._convert.mapping import Ignore, TensorPlan, plan
from moejax._convert.renamed import Renamed, rename
from moejax._convert.source import TensorSource
from moejax._convert.tensor_info import TensorInfo

if TYPE_CHECKING:
    from moejax._convert.orbax_folder import OrbaxFolder
    from moejax._convert.orbax_target import OrbaxTarget
    from moejax._convert.safetensors_folder import SafetensorsFolder
    from moejax._convert.safetensors_target import SafetensorsTarget

_FORMATS = {
    "OrbaxFolder": "moejax._convert.orbax_folder",
    "OrbaxTarget": "moejax._convert.orbax_target",
    "SafetensorsFolder": "moejax._convert.safetensors_folder",
    "SafetensorsTarget": "moejax._convert.safetensors_target",
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
        raise AttributeError(f"module 'moejax._convert' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_FORMATS[name]), name)
