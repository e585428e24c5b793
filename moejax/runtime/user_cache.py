"""The user's cache folder. What is kept there is run in a later process, so nobody else may have written it."""

import os
import stat
from pathlib import Path


class UntrustedFolderError(Exception):
    """Why what is in a cache folder is not used, in one line that says what to do."""


def user_cache(kind: str) -> Path:
    """Where things of a kind are kept: `moejax/KIND` in the user's cache folder, as the XDG specification names that.

    Raises:
        UntrustedFolderError: when this user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError as error:
        raise UntrustedFolderError(f"{error}: set XDG_CACHE_HOME to a folder") from error
    return cache / "moejax" / kind


def private_folder(kind: str) -> Path:
    """`user_cache(kind)`, made if need be, which this user owns and nobody else may write to.

    What leads to it is the user's affair, a link too; the folders `moejax` and KIND in it are folders themselves.

    Raises:
        UntrustedFolderError: where it is not so.  OSError: where it cannot be made.
    """
    folder = user_cache(kind)
    for part in (folder.parent, folder):
        try:
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            pass  # a file, or a link to nowhere: refused below
        _check_private(part)
    folder.chmod(0o700)
    return folder


def _check_private(folder: Path) -> None:
    advice = "remove it, or set XDG_CACHE_HOME to a folder of your own"
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise UntrustedFolderError(f"{folder} is a link, and what is run is not taken from behind one: {advice}")
    if not stat.S_ISDIR(found.st_mode):
        raise UntrustedFolderError(f"{folder} is not a folder: {advice}")
    if found.st_uid != os.geteuid():
        raise UntrustedFolderError(
            f"{folder} belongs to user {found.st_uid}, and this is user {os.geteuid()}: {advice}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise UntrustedFolderError(f"others can write to {folder} (mode {mode:o}), and may have done so: {advice}")


def owned(path: Path) -> bool:
    """Whether a file in a private folder is one itself, of this user, that nobody else may write to."""
    found = path.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & others
