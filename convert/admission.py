"""What is looked at before a conversion makes or removes anything."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from moejax._convert.errors import CheckpointError, listed
from moejax._convert.items import Item
from moejax._convert.journal import WORK
from moejax._convert.manifest import read_manifest
from moejax._convert.previous import bytes_of

_SPARE_BYTES = 20_000  # what an item takes on the disk beside its arrays


def check_apart(source: Path, target: Path) -> None:
    """Raises CheckpointError when one folder is the other, or inside it."""
    source, target = source.resolve(), target.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise CheckpointError(
            f"the source {source} and the target {target} overlap; give a folder apart from the source"
        )


def check_target(folder: Path, *, restart: bool, force: bool) -> None:
    """Raises CheckpointError when `folder` is no place for a conversion: it holds what nobody has given up."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder to convert into")
    if force or not folder.exists() or (folder / WORK).is_dir() or is_finished(folder, restart=restart):
        return
    if held := sorted(path.name for path in folder.iterdir()):
        raise CheckpointError(
            f"{folder} holds something else ({listed(held)}); give a new or empty folder, or --force to convert into "
            "this one: weights there are replaced, other files stay"
        )


def is_finished(folder: Path, *, restart: bool) -> bool:
    """Whether there is a manifest; a damaged one is an error, but where `restart` replaces it."""
    try:
        return read_manifest(folder) is not None
    except CheckpointError:  # a damaged one, which says itself that --restart is what helps
        if restart:
            return True
        raise


def check_room(folder: Path, items: Sequence[Item], freed: Iterable[Path]) -> None:
    """Raises CheckpointError when the disk has no room for `items` once `freed` is removed."""
    needed = sum(item.nbytes + _SPARE_BYTES for item in items) - bytes_of(freed)
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.is_dir())).free
    if needed > free:
        raise CheckpointError(
            f"{folder}: {needed / 1e9:.3f} GB are needed and {free / 1e9:.3f} GB are free on this disk; make room and "
            "run the same command again, or give a folder on another disk"
        )
