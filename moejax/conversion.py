"""Converts a checkpoint: Hugging Face safetensors to Orbax, or back. Which one is found from the source."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import moejax
from moejax._convert import (
    FLOAT_DTYPES,
    ArrayPlan,
    CheckpointError,
    Conversion,
    Item,
    OrbaxFolder,
    OrbaxTarget,
    Place,
    Report,
    SafetensorsTarget,
    read_manifest,
    run,
)
from moejax._convert.checksums import file_checksum
from moejax._convert.conversion import OnProgress, damaged
from moejax._convert.files import is_inside
from moejax._convert.manifest import MANIFEST
from moejax.checkpoint import Checkpoint, open_checkpoint
from moejax.families.hf_config import read_config_json
from moejax.families.table import family_of, weights_of
from moejax.measuring.logits import Comparison, compare_checkpoints
from moejax.runtime.paths import user_path
from moejax.weights.dtypes import resolve_dtype
from moejax.weights.weight import logical_tensors

DEFAULT_SHARD_SIZE = "5GB"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_WORDS = {dtype.name: word for word, dtype in FLOAT_DTYPES.items()}
# Files of a folder that go along as they are: texts and tokenizers, no weights of other formats.
_SIDE_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".md"}
_SIDE_NAMES = {"LICENSE", "NOTICE"}
_TOKENIZER = "tokenizer.model"  # Mistral numbers its own: tokenizer.model.v3
_LARGEST_SIDE_FILE = 100_000_000


@dataclass(frozen=True, kw_only=True)
class ConversionReport(Report):
    """What `convert` did; see `convert.Report`.

    remarks: where the weights are not what config.json leads one to expect (`Checkpoint.remarks`).
    logits: the comparison that `verify_logits` asked for.  changed: files beside the weights, of the source or of the
    target, that are not as a conversion wrote them: path -> what is the matter, and what was done.
    """

    logits: Comparison | None = None
    changed: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str = "auto",
    restart: bool = False,
    force: bool = False,
    allow_nan: bool = False,
    verify: bool = True,
    verify_logits: bool = False,
    workers: int = 2,
    shard_size: str | None = None,
    revision: str | None = None,
    on_progress: OnProgress = lambda phase, done, total: None,
) -> ConversionReport:
    """Converts a Hugging Face folder to Orbax, or a converted folder back. The same call continues a stopped one.

    Takes at most three times the largest item (an expert, an embedding) + 600 MB of memory, whatever the model's size.

    Args:
        source: "demo", a Hugging Face folder, a converted one, or a model on Hugging Face, as `moejax.load` takes it.
        target: the folder to make.
        dtype: "bfloat16", "float16", "float32" for all arrays, or "auto": each as it is stored.
        restart: begin anew where a conversion, unfinished or finished, is there.
        force: convert into a folder that holds something else; weights there are replaced, other files stay.
        allow_nan: convert NaN and infinity instead of refusing them.
        verify: read every array back and compare its checksum.
        verify_logits: compare the logits of source and target on a fixed prompt, one model after the other.
        workers: items in flight at a time, as far as the memory allows.
        shard_size: most bytes of weights in a safetensors file, as in "5GB" (the default) or "500MB".
        revision: the branch, tag or commit of a model on Hugging Face.
        on_progress: called with "convert" or "check", the bytes that are done, and the bytes in all.

    Raises:
        ValueError: in one line, for whatever cannot be read, converted or written. The target is then unfinished, which
            no `load` accepts, and the same call continues; or it was not touched.
    """
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise ValueError(f"workers must be a number from 1, got {workers!r}")
    wanted = resolve_dtype(dtype, auto="auto")
    shard_bytes = None if shard_size is None else parse_size(shard_size)
    checkpoint = open_checkpoint(source, revision)
    carried = changed_sides(checkpoint.folder, "it was carried as it is now")
    conversion = plan_conversion(checkpoint, user_path(target, "target"), dtype=wanted, shard_bytes=shard_bytes)
    report = run(
        conversion,
        restart=restart,
        force=force,
        allow_nan=allow_nan,
        check=verify,
        workers=workers,
        on_progress=on_progress,
    )
    logits = None
    if verify_logits:
        # Without a --dtype both are the same numbers, computed by the same program: then every bit has to be equal.
        logits = compare_checkpoints(checkpoint.folder, report.target, exact=wanted == "auto")
    changed = {str(path): f"{why}, so it was left out" for path, why in links_out(checkpoint.folder).items()}
    changed |= carried | changed_sides(report.target, "it was left as it is")
    return ConversionReport(
        **{field.name: getattr(report, field.name) for field in dataclasses.fields(report)},
        logits=logits,
        changed=changed,
        remarks=checkpoint.remarks,
    )


def plan_conversion(checkpoint: Checkpoint, target: Path, *, dtype: str, shard_bytes: int | None) -> Conversion:
    """Which array goes where, and in which order. Reads no weights.

    Raises:
        ValueError: when the checkpoint's tensors are not those of its configuration, or for an option that has no use.
    """
    expected = logical_tensors(weights_of(checkpoint.config))
    plan = checkpoint.plan(expected)
    tensors = checkpoint.tensors.tensors
    to_orbax = not isinstance(checkpoint.tensors, OrbaxFolder)
    if to_orbax and shard_bytes is not None:
        raise ValueError(
            "shard_size is for conversions to Hugging Face's format; chunks of Orbax have a size of their own"
        )
    names = {path: path if to_orbax else expected[path].names[0] for path in plan.sources}
    arrays = {
        path: ArrayPlan(
            source=name,
            target=names[path],
            shape=tensors[name].shape,
            dtype=tensors[name].dtype if dtype == "auto" else _WORDS[dtype],
        )
        for path, name in plan.sources.items()
    }
    where = {
        path: Place(item=tensor.item, key=tensor.weight.key, split_axis=tensor.weight.split_axis)
        for path, tensor in expected.items()
    }
    grouped: dict[str, list[str]] = {}
    for path in arrays:
        grouped.setdefault(where[path].item, []).append(path)
    sides = side_files(checkpoint.folder)
    options = {} if dtype == "auto" else {"--dtype": dtype}
    if to_orbax:
        shards = sorted({tensor.file for tensor in tensors.values()})
        source_files = sides | {file.name: file for file in shards}
        files = {
            item: sorted({tensors[arrays[path].source].file.name for path in paths}) for item, paths in grouped.items()
        }
        grouped = dict(sorted(grouped.items(), key=lambda entry: _last_file(tensors, arrays, entry[1])))
        filled = OrbaxTarget(folder=target, places=where)
    else:
        source_files = sides | {MANIFEST: checkpoint.folder / MANIFEST}
        files = dict.fromkeys(grouped, [MANIFEST])
        shard_bytes = shard_bytes or parse_size(DEFAULT_SHARD_SIZE)
        options["--shard-size"] = str(shard_bytes)
        filled = SafetensorsTarget(folder=target, arrays=tuple(arrays.values()), shard_bytes=shard_bytes)
    return Conversion(
        source=checkpoint.tensors,
        source_folder=checkpoint.folder,
        source_format="safetensors" if to_orbax else "orbax",
        source_files=source_files,
        target=filled,
        items=[
            Item(name=item, arrays=tuple(arrays[path] for path in paths), files=tuple(files[item]))
            for item, paths in grouped.items()
        ],
        options=options,
        side_files={name: side_bytes(path, dtype) for name, path in sides.items()} | _made_config(checkpoint, dtype),
        ignored=plan.ignored,
        moejax_version=moejax.__version__,
    )


def side_files(folder: Path) -> dict[str, Path]:
    """Files that a conversion copies: config.json, tokenizer files, texts; not weights and what lists them."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if _goes_along(path) and is_inside(path, folder):
            if (size := path.stat().st_size) > _LARGEST_SIDE_FILE:
                raise CheckpointError(
                    f"{path} has {size} bytes, too many for a file that goes along; move it elsewhere"
                )
            found[path.name] = path
    return found


def links_out(folder: Path) -> dict[Path, str]:
    """Links among the files that would go along which lead out of `folder`: whoever made it chose a file from here."""
    return {
        path: f"is a link out of its folder, to {path.resolve()}"
        for path in sorted(folder.iterdir())
        if _goes_along(path) and not is_inside(path, folder)
    }


def _goes_along(path: Path) -> bool:
    if path.name == MANIFEST or path.name.endswith(".index.json") or path.name.startswith("."):
        return False
    wanted = path.suffix in _SIDE_SUFFIXES or path.name in _SIDE_NAMES or path.stem == _TOKENIZER
    return wanted and path.is_file()


def changed_sides(folder: Path, done: str) -> dict[str, str]:
    """Side files of a converted folder that are not as its manifest says: path -> what is the matter, and `done`.

    A user may well have mended a chat template there, so it is no error; but nobody else may have.

    Raises:
        CheckpointError: when something changed and the folder does not load: that is damage.
    """
    if (manifest := read_manifest(folder)) is None:
        return {}
    # Found by listing, not opened by the manifest's names, which may lead anywhere; other files are not its business.
    there = {path.name: path for path in folder.iterdir() if path.name in manifest.files and path.is_file()}
    changed = {
        str(there[name]): f"was changed after it was converted; {done}"
        for name, written in manifest.files.items()
        if name in there and file_checksum(there[name]) != written
    }
    missing = sorted(manifest.files.keys() - there.keys())
    changed |= {str(folder / name): "was removed after it was converted" for name in missing}
    if changed:
        _check_loads(folder)
    return changed


def _check_loads(folder: Path) -> None:
    try:
        checkpoint = open_checkpoint(folder)
        checkpoint.plan(logical_tensors(weights_of(checkpoint.config)))
        _ = checkpoint.tokenizer
    except ValueError as error:
        raise damaged(folder, str(error)) from error


def parse_size(text: str) -> int:
    """Bytes of "5GB", "500MB", "2GiB" or "1000".

    Raises:
        ValueError: for anything else.
    """
    match = _SIZE.fullmatch(str(text).strip())
    unit = match and _UNITS.get(match[2].upper())
    if not match or unit is None or (size := int(float(match[1]) * unit)) < 1:
        raise ValueError(f"shard_size must be a number of bytes such as 5GB or 500MB, got {text!r}")
    return size


def _last_file(tensors: Mapping, arrays: Mapping[str, ArrayPlan], paths: list[str]) -> str:
    """The last file that an item is read from, so that items are read in the order of the files."""
    return max(tensors[arrays[path].source].file.name for path in paths)


def _made_config(checkpoint: Checkpoint, dtype: str) -> dict[str, bytes]:
    """config.json of a source that has none, as transformers reads it."""
    if checkpoint.has_config:
        return {}
    config = checkpoint.config
    raw = family_of(config).hf_config(config, checkpoint.dtype if dtype == "auto" else dtype)
    return {"config.json": (json.dumps(raw, indent=2) + "\n").encode()}


def side_bytes(path: Path, dtype: str) -> bytes:
    """A side file's bytes; config.json tells the new dtype where there is one."""
    if path.name != "config.json" or dtype == "auto":
        return path.read_bytes()
    raw = read_config_json(path)
    keys = [key for key in ("dtype", "torch_dtype") if key in raw] or ["torch_dtype"]
    return (json.dumps(raw | dict.fromkeys(keys, dtype), indent=2, ensure_ascii=False) + "\n").encode()
