"""Text to token ids and back, through the `tokenizer.json` of a checkpoint.

A *piece* is the vocabulary's own string for a token ("Ġthe", "▁the", "<0xE2>"); text is what pieces decode to. Text of
one character may be spread over several pieces, in two ways:

- byte-level BPE writes every byte as one character of a 256-letter alphabet ("âĤ¬" is the euro sign);
- SentencePiece's byte fallback writes a character that is not in the vocabulary as tokens "<0xE2>", "<0x82>", "<0xAC>".

Bytes that are no UTF-8 become U+FFFD. In a run of fallback tokens only the invalid bytes do, one U+FFFD each, as when
SentencePiece itself decodes; `tokenizers` replaces the whole run, and so takes back text that was already shown.
"""

import codecs
import itertools
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import hexdigits
from typing import TYPE_CHECKING, Any, Literal, Self

from convert.errors import CheckpointError, shown
from convert.files import is_there

if TYPE_CHECKING:  # at run time `from_folder` imports it, so that `import moejax` stays light
    import tokenizers

ByteForm = Literal["alphabet", "fallback", "none"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A checkpoint's tokenizer. Built by `from_folder`.

    Args:
      backend: the `tokenizers` object that does the work.
      bos_id: id of the begin-of-sequence token, or None.
      eos_id: id of the end-of-sequence token, or None.
      adds_bos: whether `encode` begins with `bos_id`.
      chat_template: Jinja source, or None.
      special_pieces: the pieces that `skip_special_tokens` leaves out.
      byte_form: how pieces hold single bytes.
    """

    backend: "tokenizers.Tokenizer"
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    chat_template: str | None
    special_pieces: frozenset[str]
    byte_form: ByteForm

    @classmethod
    def from_folder(cls, folder: Path) -> Self | None:
        """Reads the tokenizer of an HF folder; None where there is no tokenizer.json.

        BOS is added where tokenizer_config.json's `add_bos_token` says so and, if it says nothing, where the
        post-processor in tokenizer.json does. Truncation and padding saved in tokenizer.json are switched off.

        Raises:
          CheckpointError: a tokenizer file is malformed, or a link that leads nowhere.
        """
        path = folder / "tokenizer.json"
        if not is_there(path):
            return None
        config = _read_object(folder / "tokenizer_config.json")
        backend = _read_backend(path)
        ids = {name: _special_id(name, folder, config, backend) for name in ("bos", "eos")}
        # transformers treats the tokens that the config names as special even if tokenizer.json does not.
        backend.add_special_tokens([piece for i in ids.values() if i is not None and (piece := backend.id_to_token(i))])
        with _backend_errors(str(path), CheckpointError):
            first = _first_added_id(backend)
            byte_form = _find_byte_form(backend)
        if ids["bos"] is None and first != ids["eos"]:
            ids["bos"] = first
        add_bos = config.get("add_bos_token")
        if add_bos is not None and not isinstance(add_bos, bool):
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: add_bos_token must be true or false, got {shown(add_bos)}"
            )
        if add_bos and ids["bos"] is None:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: add_bos_token is true but no bos_token is named"
            )
        wants_bos = first == ids["bos"] if add_bos is None else add_bos
        return cls(
            backend=backend,
            bos_id=ids["bos"],
            eos_id=ids["eos"],
            adds_bos=wants_bos and ids["bos"] is not None,
            chat_template=_read_chat_template(folder, config),
            special_pieces=frozenset(t.content for t in backend.get_added_tokens_decoder().values() if t.special),
            byte_form=byte_form,
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. The model's own vocabulary may be padded beyond it."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token(self) -> str | None:
        """The text of the begin-of-sequence token, or None."""
        return None if self.bos_id is None else self.backend.id_to_token(self.bos_id)

    @property
    def eos_token(self) -> str | None:
        """The text of the end-of-sequence token, or None."""
        return None if self.eos_id is None else self.backend.id_to_token(self.eos_id)

    def encode(self, text: str) -> list[int]:
        """The token ids of a prompt, with BOS exactly once if the checkpoint wants it.

        A text that begins with the BOS token, as a rendered chat does, gets no second one. Nothing else that a
        post-processor would add belongs to a prompt: a closing EOS would end the text that the model is to continue.

        Raises:
          ValueError: the text holds a lone surrogate, or something this vocabulary cannot express.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"got text with a lone surrogate, {text[error.start]!r} at character {error.start}, expected valid"
                " Unicode: read the input as UTF-8 with errors='replace'"
            ) from error
        with _backend_errors("this tokenizer cannot encode the text", ValueError):
            # A batch of one: unlike `encode`, it lets other threads of Python run meanwhile.
            (encoded,) = self.backend.encode_batch_fast([text], add_special_tokens=False)
        ids = encoded.ids
        if self.bos_id is not None and self.adds_bos and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Ids without a token (a padded vocabulary) have no text.

        Raises:
          ValueError: an id is negative or needs more than 32 bits.
        """
        return self.join(self.pieces(ids, skip_special_tokens=skip_special_tokens))

    def token_text(self, token_id: int) -> str:
        """One token's text as it reads inside a text: leading space kept, part of a character as U+FFFD."""
        # Decoders drop the space in front of a text: decode behind a letter, then remove the letter.
        return self.join(["a", *self.pieces([token_id], skip_special_tokens=False)]).removeprefix("a")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token inside a text, also where they are only a part of a character."""
        piece = self._piece(token_id)
        if not piece:
            return b""
        if self.byte_form == "alphabet":
            return _alphabet_bytes(piece)
        return (
            _FALLBACK[piece]
            if self.byte_form == "fallback" and piece in _FALLBACK
            else self.token_text(token_id).encode()
        )

    def pieces(self, ids: Iterable[int], *, skip_special_tokens: bool) -> list[str]:
        """The pieces that have text, in order: special tokens (if they are skipped) and unknown ids are left out.

        Raises:
          ValueError: an id is negative or needs more than 32 bits.
        """
        hidden = self.special_pieces if skip_special_tokens else frozenset()
        found = (self._piece(int(i)) for i in ids)
        return [piece for piece in found if piece and piece not in hidden]

    def _piece(self, token_id: int) -> str | None:
        try:
            return self.backend.id_to_token(token_id)
        except OverflowError as error:
            raise ValueError(f"got token id {token_id}, expected 0 to {self.vocab_size - 1}") from error

    def join(self, pieces: Sequence[str]) -> str:
        """The text of a sequence of pieces."""
        decoder = self.backend.decoder
        if decoder is None:
            return " ".join(pieces)
        return decoder.decode(_split_runs(pieces) if self.byte_form == "fallback" else list(pieces))

    def unfinished(self, pieces: Sequence[str]) -> int:
        """How many characters at the end of `join(pieces)` stand for a character that further pieces may complete."""
        if self.byte_form == "alphabet":  # an unfinished character of any length is shown as one U+FFFD
            return min(1, _unfinished_bytes(b"".join(_alphabet_bytes(piece) for piece in pieces[-3:])))
        if self.byte_form == "fallback":  # each of its bytes is shown as one U+FFFD
            tail = b""
            for piece in reversed(pieces[-3:]):
                if piece not in _FALLBACK:
                    break
                tail = _FALLBACK[piece] + tail
            return _unfinished_bytes(tail)
        return 0


def missing_tokenizer_message(folder: Path) -> str:
    """One sentence for the caller that was given text while `Tokenizer.from_folder(folder)` is None."""
    if is_there(folder / "tokenizer.model"):
        # With transformers 5.23, AutoTokenizer loses the space in front of a text, and both lose BOS unless told.
        path = json.dumps(str(folder), ensure_ascii=False)
        load = f"LlamaTokenizer.from_pretrained({path}, add_bos_token=True)"
        program = shlex.quote(f"from transformers import LlamaTokenizer; {load}.save_pretrained({path})")
        return (
            f"{folder} has only the SentencePiece model tokenizer.model, no tokenizer.json: give token ids instead of"
            f" text, or make tokenizer.json with: pip install transformers sentencepiece && python -c {program}"
        )
    return f"{folder} has no tokenizer.json: give token ids instead of text, or add the tokenizer.json of this model"


# --- bytes in pieces ---


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's letters (Radford et al. 2019): printable Latin-1 stands for itself, the rest is moved up."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(moved)}


_ALPHABET = _byte_alphabet()
_FALLBACK = {f"<0x{a}{b}>": bytes.fromhex(a + b) for a in hexdigits for b in hexdigits}


def _alphabet_bytes(piece: str) -> bytes:
    letters = [_ALPHABET.get(letter) for letter in piece]
    known = [byte for byte in letters if byte is not None]
    return bytes(known) if len(known) == len(letters) else piece.encode()


def _find_byte_form(backend: "tokenizers.Tokenizer") -> ByteForm:
    if backend.decoder is None:
        return "none"
    if backend.decoder.decode(["aĠa"]) == "a a":
        return "alphabet"
    return "fallback" if backend.decoder.decode(["a", "<0x41>"]) == "aA" else "none"


def _split_runs(pieces: Sequence[str]) -> list[str]:
    """Puts an empty piece before each character in a run of fallback bytes, so that each is decoded by itself."""
    split: list[str] = []
    for is_run, group in itertools.groupby(pieces, key=_FALLBACK.__contains__):
        run = list(group)
        if not is_run:
            split += run
            continue
        for offset, length in _characters(b"".join(_FALLBACK[piece] for piece in run)):
            split += ["", *run[offset : offset + length]]
    return split


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


# --- tokenizer files ---


@contextmanager
def _backend_errors(what: str, kind: type[ValueError]) -> Iterator[None]:
    """Turns whatever `tokenizers` raises into one line."""
    try:
        yield
    except BaseException as error:
        # It raises plain Exception, and PanicException (a BaseException that cannot be imported) where its Rust panics.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {' '.join(str(error).split())[:300]}") from error


def _read_backend(path: Path) -> "tokenizers.Tokenizer":
    import tokenizers

    with _backend_errors(str(path), CheckpointError):
        backend = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    backend.no_truncation()  # training leaves these in the file; a prompt is never cut or padded silently
    backend.no_padding()
    return backend


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    if not is_there(path):
        return {}
    try:
        value = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _special_id(name: str, folder: Path, config: dict[str, Any], backend: "tokenizers.Tokenizer") -> int | None:
    """The id of the "bos" or "eos" token: named as text, or as an id in generation_config.json."""
    key = f"{name}_token"
    path, value = folder / "tokenizer_config.json", config.get(key)
    if not value:
        path = folder / "special_tokens_map.json"
        value = _read_object(path).get(key)
    if value:
        text = value.get("content") if isinstance(value, dict) else value
        token_id = backend.token_to_id(text) if isinstance(text, str) else None
        if token_id is None:
            raise CheckpointError(f"{path}: {key} must be a token of tokenizer.json, got {shown(value)}")
        return token_id
    path = folder / "generation_config.json"
    value = _read_object(path).get(f"{key}_id")
    if isinstance(value, list) and value:
        value = value[0]
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 0 <= value < 2**32
        or not backend.id_to_token(value)
    ):
        raise CheckpointError(f"{path}: {key}_id must be the id of a token of tokenizer.json, got {shown(value)}")
    return value


def _first_added_id(backend: "tokenizers.Tokenizer") -> int | None:
    """The id that the post-processor puts in front of a text, or None."""
    plain = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    return full[0] if full and full[:1] != plain[:1] else None


def _read_chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja (transformers 5) before tokenizer_config.json's string or list of named templates."""
    if is_there(folder / "chat_template.jinja"):
        return _read_text(folder / "chat_template.jinja")
    value = config.get("chat_template")
    if value is None or isinstance(value, str):
        return value
    path = folder / "tokenizer_config.json"
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise CheckpointError(
            f"{path}: chat_template must be a string or a list of named templates, got {shown(value)}"
        )
    template = next((entry.get("template") for entry in value if entry.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{path}: the chat template named default must be a string, got {shown(template)}")
    return template
