"""Checksums: CRC-32 of an array's bytes, SHA-256 of a file.

An array's is checked whenever it is read whole, so it has to run near memory speed. A source file's is compared once,
and SHA-256 is what the Hugging Face Hub publishes for a file, so that a manifest can be compared with it.
"""

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from convert.files import opened

BLOCK_BYTES = 1 << 18  # fits the processor's own cache, from which it is hashed
_POLYNOMIAL = 0xEDB88320  # of CRC-32, the highest power in the lowest bit
_ONE = 1 << 31


def array_checksum(array: np.ndarray) -> str:
    """`crc32:` and 8 hexadecimal digits, of the bytes of a C-contiguous array."""
    return f"crc32:{zlib.crc32(array.reshape(-1).view(np.uint8).data):08x}"


@dataclass(frozen=True)
class Sums:
    """Checksums of an array that is stored in parts: of every part, and of all where it follows from those."""

    parts: tuple[str, ...]
    whole: str | None


def joined_checksum(parts: Iterable[tuple[str, int]]) -> str:
    """The `array_checksum` of parts that lie one after the other, from theirs and their numbers of bytes.

    CRC-32 is the remainder of a division of polynomials: what n more bytes do to it is a multiplication by x^(8 n).
    """
    total = 0
    for checksum, nbytes in parts:
        total = _product(_power(8 * nbytes), total) ^ int(checksum.removeprefix("crc32:"), 16)
    return f"crc32:{total:08x}"


@cache
def _power(exponent: int) -> int:
    """x^exponent modulo the polynomial of CRC-32, by repeated squaring."""
    result, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            result = _product(result, square)
        square = _product(square, square)
        exponent >>= 1
    return result


def _product(left: int, right: int) -> int:
    """The product of two remainders modulo the polynomial of CRC-32."""
    total = 0
    while left:
        if left & _ONE:
            total ^= right
        left = left << 1 & 0xFFFFFFFF
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return total


def bytes_checksum(raw: bytes) -> str:
    """The SHA-256 of `raw`, in hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


def file_checksum(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; reads it block by block, beside other threads.

    Raises:
        CheckpointError: when the file cannot be read.
    """
    digest, block = hashlib.sha256(), bytearray(BLOCK_BYTES)
    with opened(file) as stream:
        while count := stream.readinto(block):
            digest.update(memoryview(block)[:count])
    return digest.hexdigest()
