"""SHA-256 of the source's files, found beside the conversion: one file ahead of what is being read from."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from moejax._convert.checksums import file_checksum
from moejax._convert.errors import CheckpointError


class SourceHashes:
    """Hashes of `files` (name -> path), each computed once, in a thread of its own.

    Also notices a file that changes while this exists: its size and time of change have to stay what they were.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._order = list(files)
        self._stamps = {name: _stamp(path) for name, path in files.items()}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._hashes: dict[str, Future[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, names: Iterable[str]) -> None:
        """Begins with `names` and the file after them, which reads it into the system's cache before it is needed."""
        wanted = [self._order.index(name) for name in names]
        for name in self._order[: max(wanted, default=-1) + 2]:
            if name not in self._hashes:
                self._hashes[name] = self._pool.submit(file_checksum, self._files[name])

    def found(self) -> dict[str, str]:
        """The hashes that are known by now."""
        return {name: digest.result() for name, digest in dict(self._hashes).items() if digest.done()}

    def of(self, names: Iterable[str]) -> dict[str, str]:
        """The hashes of `names`, waiting for them."""
        names = list(names)
        self.start(names)
        return {name: self._hashes[name].result() for name in names}

    def check_unchanged(self) -> None:
        """Raises CheckpointError when a file is another than when this was made."""
        for name, path in self._files.items():
            if _stamp(path) != self._stamps[name]:
                raise CheckpointError(f"{path} changed while it was converted; begin anew with --restart")


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
