"""What earlier conversions have left in a target folder, by their format: what one that begins anew removes.

Nothing else is: a file of another kind stays where it is, and a link is not followed.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from moejax._convert.errors import CheckpointError
from moejax._convert.journal import WORK
from moejax._convert.manifest import Format

WEIGHTS = "weights"  # holds the Orbax checkpoints of a folder
ITEMS, FILES = "items", "files"  # hold what is half-written, in the work folder
_ORBAX_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "commit_success.txt")
_SAFETENSORS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def previous_weights(folder: Path, formats: Iterable[Format]) -> list[Path]:
    """The files and folders in `folder` that hold weights in one of `formats`.

    Raises:
        CheckpointError: when a folder of a conversion is a link: what it leads to is another's.
    """
    for name in (WORK, WEIGHTS):
        if (path := folder / name).is_symlink():
            raise CheckpointError(
                f"{path} is a link to {path.readlink()}, and a conversion removes what is in such a folder; remove the "
                "link, or give another folder"
            )
    found = [folder / WORK / name for name in (ITEMS, FILES)]
    for one in dict.fromkeys(formats):
        found += _LISTINGS[one](folder)
    return [path for path in found if path.exists() or path.is_symlink()]


def _orbax(folder: Path) -> list[Path]:
    weights = folder / WEIGHTS
    if not weights.is_dir():
        return []
    return [
        path
        for path in sorted(weights.iterdir())
        if not path.is_symlink() and any((path / mark).is_file() for mark in _ORBAX_MARKS)
    ]


def _safetensors(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if _SAFETENSORS.fullmatch(path.name)] if folder.is_dir() else []


_LISTINGS: Mapping[Format, Callable[[Path], list[Path]]] = {"orbax": _orbax, "safetensors": _safetensors}


def bytes_of(paths: Iterable[Path]) -> int:
    """What removing files and folders gives back to their disk, about."""
    files = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())
