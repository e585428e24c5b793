"""The words for dtypes, the same everywhere. Imports no JAX."""

from difflib import get_close_matches
from typing import Any

import numpy as np

_NAMES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "f16": "float16",
    "float32": "float32",
    "fp32": "float32",
    "f32": "float32",
}
# Of torch and vLLM.
_MEANT = {"half": "float16", "float": "float32", "double": "float32", "float64": "float32"}


def resolve_dtype(dtype: Any, *, auto: str) -> str:
    """The full name of a dtype; `auto` is what the word "auto" stands for.

    Args:
        dtype: a word, or what numpy and JAX call it by: `jnp.bfloat16`, `np.dtype("float32")`.

    Raises:
        ValueError: for an unknown word, or a dtype that models are not computed in.
    """
    name = dtype if isinstance(dtype, str) else _name_of(dtype)
    if name == "auto":
        return auto
    if name not in _NAMES:
        near = get_close_matches(str(name), _NAMES, n=1)
        meant = _MEANT.get(name) or next(iter(near), None)
        hint = f"; did you mean {meant!r}?" if meant else ""
        names = ", ".join(f"{full} ({', '.join(_shorter(full))})" for full in dict.fromkeys(_NAMES.values()))
        raise ValueError(f"dtype must be {names} or auto, got {name!r}{hint}")
    return _NAMES[name]


def _name_of(dtype: Any) -> str:
    """The name of a dtype that is given as an object; of what is no dtype, how it looks."""
    if dtype is None:  # to numpy, float64
        return "None"
    try:
        return np.dtype(dtype).name
    except TypeError:
        return str(dtype)


def _shorter(full: str) -> list[str]:
    return [word for word, one in _NAMES.items() if one == full and word != full]
