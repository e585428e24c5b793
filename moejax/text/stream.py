"""The text of one generated sequence, token by token.

Streaming and unstreamed decoding both push every token through a `TextStream`, so their texts agree by construction.
Nothing here depends on how many tokens a call of the compiled step produced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moejax.text.stops import StopMatcher
from moejax.text.tokenizer import Tokenizer

# A piece holds at least one byte, and three bytes decide whether a character is unfinished: 8 leaves room for decoders
# that treat the first piece of a text in their own way.
KEPT_PIECES = 8
MAX_PIECES = 24


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """What one token added: text to show now, and the stop string that ended the sequence, or None."""

    text: str
    stop: str | None


class Detokenizer:
    """Text of a growing sequence of tokens, in time that does not depend on its length.

    The pushed texts and `flush()`, joined, are `tokenizer.decode(prompt_ids + ids)` without the prompt's text in front.
    So a space between prompt and output is part of the output. A character that the prompt leaves unfinished belongs to
    the output, whole; one that the output leaves unfinished is held back until a token or `flush()` ends it.

    Args:
      tokenizer: decodes pieces.
      prompt_ids: token ids in front of the output; the last few that have text are used.
      skip_special_tokens: whether special tokens, in the prompt too, have no text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._pieces: list[str] = []
        for token_id in reversed(prompt_ids):
            self._pieces[:0] = self._pieces_of(token_id)
            if len(self._pieces) == KEPT_PIECES:
                break
        self._released = self._finished_length(tokenizer.join(self._pieces))

    def push(self, token_id: int) -> str:
        """The text that this token completes; often empty, sometimes with text of earlier tokens in front."""
        pieces = self._pieces_of(token_id)
        if not pieces:
            return ""
        self._pieces += pieces
        text = self._tokenizer.join(self._pieces)
        end = self._finished_length(text)
        completed = text[self._released : end]
        self._released = max(self._released, end)
        if len(self._pieces) > MAX_PIECES:
            held = len(text) - self._released
            self._pieces = self._pieces[-KEPT_PIECES:]
            self._released = len(self._tokenizer.join(self._pieces)) - held
        return completed

    @property
    def held(self) -> bool:
        """Whether a character waits for the rest of its bytes."""
        return self._released < len(self._tokenizer.join(self._pieces))

    def flush(self) -> str:
        """The text still held back: the bytes of an unfinished character, as U+FFFD."""
        text = self._tokenizer.join(self._pieces)
        held = text[self._released :]
        self._released = len(text)
        return held

    def _pieces_of(self, token_id: int) -> list[str]:
        return self._tokenizer.pieces([token_id], skip_special_tokens=self._skip_special_tokens)

    def _finished_length(self, text: str) -> int:
        return len(text) - self._tokenizer.unfinished(self._pieces)


class TextStream:
    """Text and stop strings of one output.

    Args:
      tokenizer: None for a model without one: all text is then empty.
      prompt_ids: token ids in front of the output.
      stops: the stop strings.
      include_stop: whether a stop string that was found is part of the text.
      skip_special_tokens: whether special tokens, such as a final EOS, have no text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt_ids: Sequence[int],
        *,
        stops: tuple[str, ...] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self._detokenizer = (
            None if tokenizer is None else Detokenizer(tokenizer, prompt_ids, skip_special_tokens=skip_special_tokens)
        )
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens
        self._matcher = StopMatcher(stops, include=include_stop)
        self._stopped = False

    def push(self, token_id: int, *, check_stop: bool = True) -> TextDelta:
        """The text that this token releases, and the stop string that it completes.

        `check_stop=False` is for tokens up to `min_tokens`: a stop string counts if the token that completes it is
        checked, wherever the string begins (as in vLLM), so that the text it removes may belong to unchecked tokens.
        """
        if self._detokenizer is None or self._tokenizer is None:
            return TextDelta(text="", stop=None)
        if self._skip_special_tokens and token_id in self._tokenizer.special_ids:
            return self._matched(self._tokenizer.token_text(token_id), shown=False, search=check_stop)
        return self._matched(self._detokenizer.push(token_id), shown=True, search=check_stop)

    def push_last(self, token_id: int, *, shown: bool) -> TextDelta:
        """The same for a token that ends the sequence by its id, which only has text if it is `shown`.

        A special token may complete a stop string; one that has text of its own is the stop.
        """
        if self._detokenizer is None or self._tokenizer is None:
            return TextDelta(text="", stop=None)
        if token_id not in self._tokenizer.special_ids:
            return self.push(token_id, check_stop=False) if shown else TextDelta(text="", stop=None)
        if shown:
            return self.push(token_id)
        return self._matched(self._tokenizer.token_text(token_id), shown=False, search=True)

    def _matched(self, text: str, *, shown: bool, search: bool) -> TextDelta:
        text, stop = self._matcher.push(text, shown=shown, search=search)
        self._stopped = stop is not None
        return TextDelta(text=text, stop=stop)

    def finish(self) -> str:
        """The text still held back when the sequence ends; empty after a stop string. Not searched."""
        if self._detokenizer is None or self._stopped:
            return ""
        return self._matcher.flush() + self._detokenizer.flush()
