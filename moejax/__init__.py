"""moejax: decodes Mixtral-family mixture-of-experts models in JAX.

    import moejax

    model = moejax.load("demo")
    print(moejax.decode(model, "The import statement", max_tokens=64)[0].text)

Importing this package imports no JAX; the first use of `load` does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from moejax._convert import CheckpointError as CheckpointError
    from moejax._sharding import MeshConfig as MeshConfig
    from moejax._sharding import bytes_per_device as bytes_per_device
    from moejax.conversion import ConversionReport as ConversionReport
    from moejax.conversion import convert as convert
    from moejax.decoding.api import decode as decode
    from moejax.decoding.api import encode_chat as encode_chat
    from moejax.decoding.api import logits as logits
    from moejax.decoding.asynchronous import adecode as adecode
    from moejax.decoding.failures import NonFiniteLogitsError as NonFiniteLogitsError
    from moejax.decoding.results import DecodeEvent as DecodeEvent
    from moejax.decoding.results import DecodeResult as DecodeResult
    from moejax.decoding.results import Logprob as Logprob
    from moejax.decoding.results import Output as Output
    from moejax.decoding.results import Stats as Stats
    from moejax.decoding.sampling_params import SamplingParams as SamplingParams
    from moejax.families.config import ModelConfig as ModelConfig
    from moejax.loading import Model as Model
    from moejax.loading import load as load
    from moejax.planning.compare import compare_meshes as compare_meshes
    from moejax.planning.rows import MeshRow as MeshRow
    from moejax.saving import save as save

_HOME = {
    # models
    "load": "moejax.loading",
    "Model": "moejax.loading",
    "ModelConfig": "moejax.families.config",
    "MeshConfig": "moejax._sharding",
    "bytes_per_device": "moejax._sharding",
    "CheckpointError": "moejax._convert",
    # splits over devices
    "compare_meshes": "moejax.planning.compare",
    "MeshRow": "moejax.planning.rows",
    # checkpoints
    "convert": "moejax.conversion",
    "save": "moejax.saving",
    "ConversionReport": "moejax.conversion",
    # decoding
    "decode": "moejax.decoding.api",
    "adecode": "moejax.decoding.asynchronous",
    "encode_chat": "moejax.decoding.api",
    "logits": "moejax.decoding.api",
    "SamplingParams": "moejax.decoding.sampling_params",
    "NonFiniteLogitsError": "moejax.decoding.failures",
    # results
    "DecodeResult": "moejax.decoding.results",
    "Output": "moejax.decoding.results",
    "Logprob": "moejax.decoding.results",
    "Stats": "moejax.decoding.results",
    "DecodeEvent": "moejax.decoding.results",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'moejax' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
