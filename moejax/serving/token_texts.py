"""Where tokens are in a text, the bytes that they add to it, and the names that tell them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moejax.decoding.results import Logprob
from moejax.text.stream import Detokenizer
from moejax.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenPlace:
    """A token in a text.

    start, end: characters of the text when it comes and after it; the same for all but the last part of a character.
    data: the bytes that it adds; those of all tokens, joined, are the text's.
    """

    start: int
    end: int
    data: bytes

    def cut(self, length: int) -> bytes:
        """The bytes that are left of it in a text that ends after `length` characters."""
        if self.end <= length:
            return self.data
        return b"" if self.start >= length else self.data.decode(errors="replace")[: length - self.start].encode()


class TokenTexts:
    """The tokens of one text, one after the other.

    Args:
        tokenizer: None for a model without one: its tokens have no text.
        prompt_ids: token ids in front of the text.
        skip_special_tokens: whether special tokens have no text.
    """

    def __init__(self, tokenizer: Tokenizer | None, prompt_ids: Sequence[int], *, skip_special_tokens: bool) -> None:
        self._tokenizer, self._skips, self._end = tokenizer, skip_special_tokens, 0
        self._stream = (
            None if tokenizer is None else Detokenizer(tokenizer, prompt_ids, skip_special_tokens=skip_special_tokens)
        )

    def push(self, token: int) -> TokenPlace:
        """The place of the next token."""
        start, stream = self._end, self._stream
        if stream is None:
            return TokenPlace(start=start, end=start, data=b"")
        in_character = stream.held
        text = stream.push(token)
        self._end += len(text)
        # A whole text is what it is in its place, where decoders may leave out a space; bytes that are no text stay so.
        whole = not in_character and not stream.held and "\ufffd" not in text
        return TokenPlace(start=start, end=self._end, data=text.encode() if whole else self.data(token))

    def data(self, token: int) -> bytes:
        """The bytes that a token would add to a text; none for one that is left out of it."""
        tokenizer = self._tokenizer
        if tokenizer is None or not tokenizer.pieces([token], skip_special_tokens=self._skips):
            return b""
        return tokenizer.token_bytes(token)

    def name(self, token: int, text: str) -> str:
        """The text of a token, or its bytes where it is a part of a character, as OpenAI's API writes them."""
        if "\ufffd" not in text or self._tokenizer is None:
            return text
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def names(self, entry: Mapping[int, Logprob]) -> dict[int, str]:
        """A name for each candidate of one place, by its id: two that look the same have different ones."""
        names: dict[int, str] = {}
        taken: set[str] = set()
        for token, one in sorted(entry.items(), key=lambda pair: pair[1].rank):
            name = self.name(token, one.decoded_token)
            names[token] = name if name not in taken else f"token_id:{token}"
            taken.add(names[token])
        return names
