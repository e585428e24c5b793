"""The text of one generated sequence, token by token.

Streaming and unstreamed decoding both push every token through a `TextStream`, so their texts agree by construction.
Nothing here depends on how many tokens a call of the compiled step produced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


class StopMatcher:
    """Finds the first stop string in a text that arrives in parts, the same one however the text is divided.

    The match is the one a reader of single characters sees first: the earliest *end*; of several that end there, the
    longest. (The earliest *start* would have to wait for text that may never come.) Text that may be the beginning of a
    stop string is held back.

    Args:
      stops: the stop strings.
      include: whether a stop string that was found is part of the text.

    Raises:
      ValueError: a stop string is empty.
    """

    def __init__(self, stops: tuple[str, ...], *, include: bool) -> None:
        if not all(stops):
            raise ValueError(f"got an empty stop string in {stops!r}, expected at least one character in each")
        self._stops = stops
        self._include = include
        self._held = ""
        self._stop: str | None = None

    def push(self, text: str, *, search: bool = True) -> tuple[str, str | None]:
        """(text released by this part, the stop string found or None). After a stop: no text, and the same stop.

        `search=False` lets stop strings that end in this part pass; one that begins in it may still be found later.
        """
        if self._stop is not None:
            return "", self._stop
        pending, before = self._held + text, len(self._held)
        found = [(end, -len(stop), stop) for stop in self._stops if (end := _first_end(pending, stop, before))]
        if found and search:
            end, _, self._stop = min(found)
            self._held = ""
            return pending[: end if self._include else end - len(self._stop)], self._stop
        keep = len(pending) - max((_begun(pending, stop) for stop in self._stops), default=0)
        self._held = pending[keep:]
        return pending[:keep], None

    def flush(self) -> str:
        """The text still held back, when no more will come."""
        held, self._held = self._held, ""
        return held


def _first_end(text: str, stop: str, after: int) -> int:
    """Where the first `stop` in `text` ends that does so past `after` characters; 0 if there is none."""
    start = text.find(stop, max(0, after - len(stop) + 1))
    return 0 if start < 0 else start + len(stop)


def _begun(text: str, stop: str) -> int:
    """How much of `stop`, but not all of it, the text ends with."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)


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
        self._matcher = StopMatcher(stops, include=include_stop)
        self._stopped = False

    def push(self, token_id: int, *, check_stop: bool = True) -> TextDelta:
        """The text that this token releases, and the stop string that it completes.

        `check_stop=False` is for tokens up to `min_tokens`: a stop string counts if the token that completes it is
        checked, wherever the string begins (as in vLLM), so that the text it removes may belong to unchecked tokens.
        """
        if self._detokenizer is None:
            return TextDelta(text="", stop=None)
        text, stop = self._matcher.push(self._detokenizer.push(token_id), search=check_stop)
        self._stopped = stop is not None
        return TextDelta(text=text, stop=stop)

    def finish(self) -> str:
        """The text still held back when the sequence ends; empty after a stop string. Not searched."""
        if self._detokenizer is None or self._stopped:
            return ""
        return self._matcher.flush() + self._detokenizer.flush()
