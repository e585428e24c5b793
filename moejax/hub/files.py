"""Which files of a model are needed: the small ones beside the weights, and the weights in one of their forms."""

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from moejax._convert import CheckpointError
from moejax._convert.errors import listed
from moejax._convert.files import opened, read_json
from moejax.families.mistral_release import PARAMS, STEM

HF = "model"  # what the files of weights begin with in transformers' form; STEM in Mistral's own
INDEX = ".safetensors.index.json"

# What is read of a folder beside its weights, and the marks of quantisers, by which it is refused.
SIDES = (
    *("config.json", "generation_config.json", PARAMS, f"{HF}{INDEX}", f"{STEM}{INDEX}"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer.model.v*", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "chat_template.json"),
    *("quantize_config.json", "quant_config.json"),
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer.model.v*")
_OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"}


def weight_form(names: Collection[str]) -> str | None:
    """Which form of the weights is among `names`: `HF` wherever it is, else `STEM`, Mistral's own; None of neither."""
    forms = (form for form in (HF, STEM) if f"{form}.safetensors" in names or f"{form}{INDEX}" in names)
    return next(forms, None)


def weight_files(folder: Path, form: str, names: Collection[str]) -> tuple[str, ...]:
    """The files of weights in that form, of those that the model has; `folder` holds its small files.

    Raises:
        CheckpointError: when the index cannot be read, or names a file that is not there.
    """
    single = f"{form}.safetensors"
    if single in names:  # which is read where both are there
        return (single,)
    index = folder / f"{form}{INDEX}"
    with opened(index) as stream:
        places = read_json(index, stream).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map, so it says nothing of where the weights are")
    shards = sorted({str(shard) for shard in places.values()})
    if missing := [shard for shard in shards if shard not in names]:
        raise CheckpointError(f"{index} names files that the model does not have: {listed(missing)}")
    return tuple(shards)


def is_whole(folder: Path) -> bool:
    """Whether a snapshot in the cache holds all weights of one form, and what describes them."""
    names = {path.name for path in folder.iterdir() if path.exists()}
    form = weight_form(names)
    if form is None or ("config.json" if form == HF else PARAMS) not in names:
        return False
    try:
        weight_files(folder, form, names)
    except CheckpointError:  # a shard is not there yet
        return False
    return True


def has_tokenizer(folder: Path) -> bool:
    """Whether a snapshot holds a tokenizer of any kind."""
    return any(next(folder.glob(pattern), None) for pattern in _TOKENIZERS)


def about_other_weights(names: Collection[str]) -> str:
    """What a model without safetensors has instead."""
    found = sorted(name for name in names if PurePosixPath(name).suffix in _OTHER_WEIGHTS)
    adapters = sorted(name for name in names if name.startswith("adapter_"))
    if adapters:
        return f"it is an adapter of another model ({listed(adapters)}); merge it into that one"
    return f"its weights are {listed(found)}" if found else "it has no weights in any form that is known"
