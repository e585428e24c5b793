"""Bytes in pieces.

Text of one character may be spread over several pieces, in two ways:

- byte-level BPE writes every byte as one character of a 256-letter alphabet ("âĤ¬" is the euro sign);
- SentencePiece's byte fallback writes a character that is not in the vocabulary as tokens "<0xE2>", "<0x82>", "<0xAC>".
"""

import codecs
import itertools
from collections.abc import Callable, Iterator, Sequence
from string import hexdigits
from typing import Literal

ByteForm = Literal["alphabet", "fallback", "none"]


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's letters (Radford et al. 2019): printable Latin-1 stands for itself, the rest is moved up."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(moved)}


_ALPHABET = _byte_alphabet()
FALLBACK = {f"<0x{a}{b}>": bytes.fromhex(a + b) for a in hexdigits for b in hexdigits}


def find_byte_form(decode: Callable[[list[str]], str]) -> ByteForm:
    """How pieces hold bytes, found by decoding some."""
    if decode(["aĠa"]) == "a a":
        return "alphabet"
    return "fallback" if decode(["a", "<0x41>"]) == "aA" else "none"


def alphabet_bytes(piece: str) -> bytes:
    """The bytes of a piece of byte-level BPE; those of its text, where it is no such piece."""
    letters = [_ALPHABET.get(letter) for letter in piece]
    known = [byte for byte in letters if byte is not None]
    return bytes(known) if len(known) == len(letters) else piece.encode()


def split_runs(pieces: Sequence[str]) -> list[str]:
    """Puts an empty piece before each character in a run of fallback bytes, so that each is decoded by itself."""
    split: list[str] = []
    for is_run, group in itertools.groupby(pieces, key=FALLBACK.__contains__):
        run = list(group)
        if not is_run:
            split += run
            continue
        for offset, length in _characters(b"".join(FALLBACK[piece] for piece in run)):
            split += ["", *run[offset : offset + length]]
    return split


def unfinished_characters(pieces: Sequence[str], form: ByteForm) -> int:
    """How many characters at the end of the text of `pieces` stand for one that further pieces may complete."""
    if form == "alphabet":  # an unfinished character of any length is shown as one U+FFFD
        return min(1, _unfinished_bytes(b"".join(alphabet_bytes(piece) for piece in pieces[-3:])))
    if form == "fallback":  # each of its bytes is shown as one U+FFFD
        tail = b""
        for piece in reversed(pieces[-3:]):
            if piece not in FALLBACK:
                break
            tail = FALLBACK[piece] + tail
        return _unfinished_bytes(tail)
    return 0


def _characters(data: bytes) -> Iterator[tuple[int, int]]:
    """(offset, length) of each character of `data`; a byte that belongs to none counts as one."""
    offset = 0
    while offset < len(data):
        length = next((n for n in range(1, 5) if _is_utf8(data[offset : offset + n])), 1)
        yield offset, length
        offset += length


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unfinished_bytes(data: bytes) -> int:
    """How many bytes at the end of `data` begin a character and do not end it: 0 to 3."""
    for length in range(1, min(3, len(data)) + 1):
        tail = data[-length:]
        if tail[0] >= 0xC0:  # the first byte of a character; those below are its second to fourth
            try:
                text, _ = codecs.utf_8_decode(tail, "strict", False)
            except UnicodeDecodeError:
                return 0
            return 0 if text else length
    return 0
