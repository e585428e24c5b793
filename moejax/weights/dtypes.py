"""The words for dtypes, the same everywhere. Imports no JAX."""

from difflib import get_close_matches

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


def resolve_dtype(name: str, *, auto: str) -> str:
    """The full name of a dtype; `auto` is what the word "auto" stands for.

    Raises:
        ValueError: for an unknown word.
    """
    if name == "auto":
        return auto
    if name not in _NAMES:
        near = get_close_matches(str(name), _NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown dtype {name!r}: use bfloat16, float16, float32 or auto{hint}")
    return _NAMES[name]
