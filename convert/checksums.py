"""Checksums: CRC-32 of an array's bytes, SHA-256 of a file.

An array's is compared whenever it is read whole, so it has to run near memory speed. A source file's is compared once,
and SHA-256 is what the Hugging Face Hub publishes for a file, so that a manifest can be compared with it.
"""

import hashlib
import zlib
from pathlib import Path

import numpy as np

from moejax._convert.files import reading


def array_checksum(array: np.ndarray) -> str:
    """`crc32:` and 8 hexadecimal digits, of the bytes of a C-contiguous array."""
    return f"crc32:{zlib.crc32(array.reshape(-1).view(np.uint8).data):08x}"


def bytes_checksum(raw: bytes) -> str:
    """The SHA-256 of `raw`, in hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


def file_checksum(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; reads it block by block, beside other threads.

    Raises:
        CheckpointError: when the file cannot be read.
    """
    with reading(file), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
