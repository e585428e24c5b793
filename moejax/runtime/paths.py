"""Paths as users give them."""

import os
from contextlib import suppress
from pathlib import Path


def user_path(given: object, what: str) -> Path:
    """The path that was given, with `~` as the user's home. what: the word for it in messages.

    Raises:
        ValueError: for what is no path, or can be none on any system: no such home, a null byte, too long a name.
    """
    if not isinstance(given, str | os.PathLike):
        raise ValueError(f"{what} must be a name or a path, got {given!r:.80}")
    if not os.fspath(given):
        raise ValueError(f"{what} is empty; give a name or a path")
    try:
        path = Path(given).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # told by whoever opens it
            os.stat(path)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
        raise ValueError(f"{what} {str(given)!r:.80} is no path here: {reason}; give another") from error
    return path
