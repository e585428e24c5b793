"""Text to token ids and back, through the tokenizer of a checkpoint: its tokenizer.json, or a SentencePiece model.

A *piece* is the vocabulary's own string for a token ("Ġthe", "▁the", "<0xE2>"); text is what pieces decode to.

Bytes that are no UTF-8 become U+FFFD. In a run of fallback tokens only the invalid bytes do, one U+FFFD each, as when
SentencePiece itself decodes; `tokenizers` replaces the whole run, and so takes back text that was already shown.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from moejax._convert.errors import CheckpointError, shown
from moejax._convert.files import DOWNLOADED, decoded, parse_object
from moejax.text.byte_pieces import (
    FALLBACK,
    ByteForm,
    alphabet_bytes,
    find_byte_form,
    split_runs,
    unfinished_characters,
)
from moejax.text.limited import Limited, LimitReached
from moejax.text.token_files import (
    GENERATION,
    TokenFiles,
    find_file,
    read_bytes,
    read_object,
    read_token_files,
    special_id,
)

if TYPE_CHECKING:  # at run time `from_folder` imports it, so that `import moejax` stays light
    from tokenizers.decoders import Decoder

# In this order; Mistral's own releases have a number behind the name.
_JSON, _SENTENCEPIECE = "tokenizer.json", ("tokenizer.model", *(f"tokenizer.model.v{n}" for n in (3, 2, 1)))

# Of processor time, and of address space beside 16 times the file's size. A vocabulary of 250,000 tokens takes 2 s.
_LOAD_SECONDS, _ENCODE_SECONDS, _MEMORY = 20, 5, 1 << 30
_CHARACTERS_PER_SECOND = 20_000  # the slowest of published tokenizers encode ten times as many


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A checkpoint's tokenizer. Built by `from_folder`.

    Args:
      encoder: what turns text into ids, in a process of its own.
      vocabulary: the piece of each token id; ids may be missing.
      decoder: what turns pieces into text; None joins them with spaces.
      special_pieces: the pieces that `skip_special_tokens` leaves out.
      named: text of the tokens that have a name ("bos_token", "pad_token", ...), which chat templates may ask for.
      bos_id: id of the begin-of-sequence token, or None.
      eos_id: id of the end-of-sequence token, or None.
      adds_bos: whether `encode` begins with `bos_id`.
      chat_templates: Jinja sources by name.
      repeated_templates: names that had other sources, too, which do not count.
      byte_form: how pieces hold single bytes.
    """

    encoder: Limited
    vocabulary: Mapping[int, str]
    decoder: "Decoder | None"
    special_pieces: frozenset[str]
    named: Mapping[str, str]
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    chat_templates: Mapping[str, str]
    repeated_templates: tuple[str, ...]
    byte_form: ByteForm

    @classmethod
    def from_folder(cls, folder: Path, generation: Mapping[str, Any] | None = None) -> Self | None:
        """Reads the tokenizer of a folder: tokenizer.json, else SentencePiece's; None where there is neither.

        BOS is added where tokenizer_config.json's `add_bos_token` says so and, if it says nothing, where the
        post-processor in tokenizer.json does, or the file is a SentencePiece model. Truncation and padding saved in
        tokenizer.json are switched off.

        generation: what generation_config.json says; None reads it.

        Raises:
          CheckpointError: a tokenizer file is malformed, takes more time or memory than any tokenizer needs, or is a
            link that leads nowhere or out of the folder.
        """
        name = next((name for name in (_JSON, *_SENTENCEPIECE) if find_file(folder, name)), None)
        if name is None:
            return None
        files = read_token_files(folder)
        encoder = _encoder(folder, name, files)
        found = _described(encoder, folder, name)
        vocabulary = dict(zip(found["ids"], found["pieces"], strict=True))
        ids = {piece: i for i, piece in vocabulary.items()}
        named = found["named"] | files.named
        if generation is None:
            generation = read_object(folder, GENERATION)
        bos_id, eos_id = (
            ids[named[f"{which}_token"]]
            if f"{which}_token" in named
            else special_id(generation, which, vocabulary, folder)
            for which in ("bos", "eos")
        )
        first = found["first"]
        if bos_id is None and first != eos_id:
            bos_id = first
        if files.adds_bos and bos_id is None:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: add_bos_token is true but no bos_token is named"
            )
        does = first == bos_id or name in _SENTENCEPIECE if files.adds_bos is None else files.adds_bos
        decoder = _decoder(found["decoder"])
        return cls(
            encoder=encoder,
            vocabulary=vocabulary,
            decoder=decoder,
            special_pieces=files.special.union(
                found["special"], (vocabulary[i] for i in (bos_id, eos_id) if i is not None)
            ),
            named=named,
            bos_id=bos_id,
            eos_id=eos_id,
            adds_bos=does and bos_id is not None,
            chat_templates=files.chat_templates,
            repeated_templates=files.repeated,
            byte_form="none" if decoder is None else find_byte_form(decoder.decode),
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. The model's own vocabulary may be padded beyond it."""
        return len(self.vocabulary)

    @cached_property
    def num_ids(self) -> int:
        """The highest token id plus one: rows of an embedding that has one for each."""
        return 1 + max(self.vocabulary, default=-1)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of each piece."""
        return {piece: i for i, piece in self.vocabulary.items()}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of the tokens that `skip_special_tokens` leaves out."""
        return frozenset(i for i, piece in self.vocabulary.items() if piece in self.special_pieces)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source for chats, or None."""
        return self.chat_templates.get("default")

    @property
    def bos_token(self) -> str | None:
        """The text of the begin-of-sequence token, or None."""
        return None if self.bos_id is None else self.vocabulary[self.bos_id]

    @property
    def eos_token(self) -> str | None:
        """The text of the end-of-sequence token, or None."""
        return None if self.eos_id is None else self.vocabulary[self.eos_id]

    def encode(self, text: str) -> list[int]:
        """The token ids of a prompt, with BOS exactly once if the checkpoint wants it.

        A text that begins with the BOS token, as a rendered chat does, gets no second one. Nothing else that a
        post-processor would add belongs to a prompt: a closing EOS would end the text that the model is to continue.

        Raises:
          ValueError: the text holds a lone surrogate, or something this vocabulary cannot express, or the tokenizer
            takes more time or memory for it than any tokenizer needs.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"got text with a lone surrogate, {text[error.start]!r} at character {error.start}, expected valid"
                " Unicode: read the input as UTF-8 with errors='replace'"
            ) from error
        seconds = _ENCODE_SECONDS + len(text) // _CHARACTERS_PER_SECOND
        try:
            ids = self.encoder.ask(text, seconds=seconds)
        except LimitReached as error:
            raise ValueError(f"this tokenizer cannot encode the text: it {error}") from error
        except ValueError as error:
            raise ValueError(f"this tokenizer cannot encode the text: {error}") from error
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
            return alphabet_bytes(piece)
        if self.byte_form == "fallback" and piece in FALLBACK:
            return FALLBACK[piece]
        return self.token_text(token_id).encode()

    def pieces(self, ids: Iterable[int], *, skip_special_tokens: bool) -> list[str]:
        """The pieces that have text, in order: special tokens (if they are skipped) and unknown ids are left out.

        Raises:
          ValueError: an id is negative or needs more than 32 bits.
        """
        hidden = self.special_pieces if skip_special_tokens else frozenset()
        found = (self._piece(int(i)) for i in ids)
        return [piece for piece in found if piece and piece not in hidden]

    def _piece(self, token_id: int) -> str | None:
        if not 0 <= token_id < 2**32:
            raise ValueError(f"got token id {token_id}, expected 0 to {self.num_ids - 1}")
        return self.vocabulary.get(token_id)

    def join(self, pieces: Sequence[str]) -> str:
        """The text of a sequence of pieces."""
        if self.decoder is None:
            return " ".join(pieces)
        try:
            return self.decoder.decode(split_runs(pieces) if self.byte_form == "fallback" else list(pieces))
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # a BaseException that cannot be imported
                raise
            raise ValueError(f"this tokenizer cannot decode {shown(list(pieces))}: {error}") from error

    def unfinished(self, pieces: Sequence[str]) -> int:
        """How many characters at the end of `join(pieces)` stand for a character that further pieces may complete."""
        return unfinished_characters(pieces, self.byte_form)


def missing_tokenizer_message(folder: Path) -> str:
    """One sentence for the caller that was given text while `Tokenizer.from_folder(folder)` is None."""
    other = (
        " (its tekken.json is a third kind, which moejax does not read)" if (folder / "tekken.json").exists() else ""
    )
    return (
        f"{folder} has neither {_JSON} nor {_SENTENCEPIECE[0]}{other}: give token ids instead of text, or add the"
        " tokenizer of this model"
    )


def _described(encoder: Limited, folder: Path, name: str) -> Mapping[str, Any]:
    """What the tokenizer's library says of its file."""
    try:
        return encoder.describe()
    except LimitReached as error:
        raise CheckpointError(f"{folder / name}: reading this tokenizer {error}") from error
    except ValueError as error:
        if name == _JSON:  # what is no JSON at all is said as of any other file
            parse_object(str(folder / name), read_bytes(folder, name) or b"")
        if "recursion limit" in str(error):  # its library stops before Python does
            raise CheckpointError(f"{folder / name} is nested too deeply; {DOWNLOADED.made}") from error
        raise CheckpointError(f"{folder / name}: {error}") from error


def _encoder(folder: Path, name: str, files: TokenFiles) -> Limited:
    setup: dict[str, Any] = {"added": files.added}
    if name in _SENTENCEPIECE:
        model = read_bytes(folder, name) or b""
        setup |= {"kind": "sentencepiece", "model": base64.b64encode(model).decode(), "prefix": files.prefix}
        size = len(model)
    else:
        text = decoded(str(folder / name), read_bytes(folder, name) or b"")
        setup |= {"kind": "tokenizer.json", "text": text}
        size = len(text)
    return Limited(task="tokenizer", setup=setup, seconds=_LOAD_SECONDS, memory=_MEMORY + 16 * size)


def _decoder(form: str | None) -> "Decoder | None":
    if form is None:
        return None
    import tokenizers

    bare = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": [], "decoder": json.loads(form)}
    return tokenizers.Tokenizer.from_str(json.dumps(bare)).decoder
