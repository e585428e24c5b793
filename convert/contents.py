"""What is in a folder that holds no checkpoint to read: named as what it is, with what to do next."""

import json
import re
import shlex
from pathlib import Path

from moejax._convert.errors import listed
from moejax._convert.manifest import MANIFEST

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_CONFIGS = ("config.json", "params.json")
_MOST_ENTRIES = 10_000  # looked at below a folder, for one that is somebody's home
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_GGUF = "weights of llama.cpp (GGUF), most often quantised"
_GGML = "weights of an early llama.cpp (GGML), quantised"
_H5 = "weights for TensorFlow"
_OTHERS = {
    ".gguf": _GGUF,
    ".ggml": _GGML,
    ".h5": _H5,
    ".msgpack": "weights for Flax",
    ".onnx": "a compiled graph (ONNX)",
    ".engine": "a compiled program of TensorRT",
    ".nemo": "a checkpoint of NeMo",
}
_PICKLE = "pickled weights"
# How files begin, whatever their name: the formats' own marks; torch.save writes a zip, or a bare pickle before 1.6.
_MARKS = {
    b"GGUF": _GGUF,
    b"lmgg": _GGML,
    b"fmgg": _GGML,
    b"tjgg": _GGML,
    b"\x89HDF\r\n\x1a\n": _H5,
    b"PK\x03\x04": _PICKLE,
    b"\x80\x02": _PICKLE,
}
# What training leaves beside the weights, and what is no model.
_OF_TRAINING = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt", "rng_state.pth"}
_QUANTISERS = {"quantize_config.json": "AutoGPTQ", "quant_config.json": "AutoAWQ"}
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BASE = re.compile(r"^base_model:\s*(?:-\s*)?[\"']?([^\s\"']+)", re.MULTILINE)
_SHORT = 100_000  # bytes of a text that is looked into for a name


def other_kind(folder: Path) -> str | None:
    """What `folder` is when it is no checkpoint in a layout that is read, and the next command; else None.

    Nothing in it is opened but short texts, for the name of the model that it was made from.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:  # whoever opens it says why
        return None
    if quantiser := next((name for name in names if name in _QUANTISERS), None):
        return (
            f"{folder} is quantised by {_QUANTISERS[quantiser]} ({quantiser}), which moejax does not read; "
            f"{download_original(folder)}"
        )
    if any(name in names for name in (*_WEIGHTS, MANIFEST)) or (folder / "weights").is_dir():
        return None
    if found := [name for name in names if name.startswith("adapter_")]:
        return (
            f"{folder} is a LoRA adapter ({listed(found)}), which changes another model and is none by itself; merge "
            f"it into that one and give {folder}-merged: {_merge(folder)}"
        )
    if found := [name for name in names if Path(name).suffix in _OTHERS]:
        return f"{folder} holds {of_file(folder / found[0])} ({listed(found)}); {download_original(folder)}"
    if "consolidated.safetensors" in names and "params.json" not in names:
        name = shlex.quote(_base_of(folder) or "ORG/NAME")
        return (
            f"{folder} holds consolidated.safetensors without its params.json; get that too, as in: hf download {name} "
            f"params.json --local-dir {shlex.quote(str(folder))}"
        )
    pickled = [name for name in names if Path(name).suffix in _PICKLED and name not in _OF_TRAINING]
    if pickled:
        released = "params.json" in names
        what = "is in Mistral's own layout, pickled" if released else "holds only pickled weights"
        advice = download_original(folder)
        if not released and any(name.startswith("pytorch_model") for name in pickled):  # transformers reads no others
            advice = _resaved(folder)
        return f"{folder} {what} ({listed(pickled)}), and pickle can run code; {advice}"
    if not any(name in names for name in _CONFIGS) and not any(name.endswith(".safetensors") for name in names):
        return _below(folder)
    return None


def of_file(file: Path) -> str | None:
    """What a file of weights is that moejax does not read, by how it begins, else by its name; None of any other."""
    start = _start(file)
    by_start = next((kind for mark, kind in _MARKS.items() if start.startswith(mark)), None)
    return by_start or _OTHERS.get(file.suffix) or (_PICKLE if file.suffix in _PICKLED else None)


def about_file(file: Path) -> str:
    """What is said of a file where a checkpoint's folder is expected: what it is, and what to give instead."""
    folder, start = file.parent, _start(file)
    # Eight bytes of length, then JSON.
    if start[8:9] == b"{" or (file.suffix == ".safetensors" and of_file(file) is None):
        return f"{file} is one file of a checkpoint in safetensors; give the folder with it and config.json: {folder}"
    kind = of_file(file)
    if kind is None:
        return f"{file} is a file; give the folder that holds config.json and the safetensors files"
    if kind is not _PICKLE:
        return f"{file} holds {kind}; {download_original(folder)}"
    resaved = file.name.startswith("pytorch_model") and (folder / "config.json").is_file()
    advice = _resaved(folder) if resaved else download_original(folder)
    return f"{file} holds {kind}, and pickle can run code; {advice}"


def download_original(folder: Path) -> str:
    """How to get what was quantised or changed: the model that the folder's texts name, where they name one."""
    name = _base_of(folder) or "ORG/NAME"
    command = ["hf", "download", name, "--exclude", "consolidated*", "--local-dir", name.split("/")[1]]
    return f"download the original in safetensors, as in: {shlex.join(command)}"


def _below(folder: Path) -> str | None:
    """The checkpoints in the folders of `folder`, and in theirs, as the Hugging Face cache has them."""
    found: list[Path] = []
    entries = 0
    for pattern in ("*", "*/*", "*/*/*"):
        for path in folder.glob(pattern):
            entries += 1
            if path.name in _CONFIGS and path.parent != folder:
                found.append(path.parent)
            if entries > _MOST_ENTRIES:
                break
    found = sorted(set(found))
    if not found:
        return None
    if len(found) == 1:
        return f"{folder} holds no checkpoint itself, but {found[0]} does; give that folder"
    return f"{folder} holds no checkpoint itself, but {len(found)} folders in it may: {listed(list(map(str, found)))}"


def _base_of(folder: Path) -> str | None:
    """The id of the model that a folder was made from, as its adapter_config.json, README.md or config.json says."""
    adapter, config = (_fields(folder / name) for name in ("adapter_config.json", "config.json"))
    said = [adapter.get("base_model_name_or_path"), *_BASE.findall(_text(folder / "README.md"))]
    said.append(config.get("_name_or_path"))
    return next((one for one in said if isinstance(one, str) and _ID.fullmatch(one)), None)


def _fields(file: Path) -> dict[str, object]:
    try:
        found = json.loads(_text(file) or "{}")
    except (ValueError, RecursionError):  # only a name is looked for
        return {}
    return found if isinstance(found, dict) else {}


def _start(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(9)
    except OSError:  # whoever opens it says why
        return b""


def _text(file: Path) -> str:
    try:
        return (
            file.read_text(encoding="utf-8-sig", errors="replace")
            if file.is_file() and file.stat().st_size <= _SHORT
            else ""
        )
    except OSError:
        return ""


def _merge(folder: Path) -> str:
    target = json.dumps(f"{folder}-merged")
    return _python(
        "from peft import AutoPeftModelForCausalLM as M",
        "from transformers import AutoTokenizer as T",
        f"m = M.from_pretrained({json.dumps(str(folder))})",
        f"m.merge_and_unload().save_pretrained({target})",
        f'T.from_pretrained(m.peft_config["default"].base_model_name_or_path).save_pretrained({target})',
    )


def _resaved(folder: Path) -> str:
    source, target = json.dumps(str(folder)), json.dumps(f"{folder}-safetensors")
    command = _python(
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T",
        f"M.from_pretrained({source}).save_pretrained({target})",
        f"T.from_pretrained({source}).save_pretrained({target})",
    )
    return f"re-save as safetensors and give {folder}-safetensors: {command}"


def _python(*statements: str) -> str:
    return shlex.join(["python", "-c", "; ".join(statements)])
