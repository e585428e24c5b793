"""The bytes and places of tokens: joined, the bytes of all tokens are the text's, whatever the tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.decoding.results import Logprob
from moejax.serving.token_texts import TokenTexts
from moejax.text.stream import Detokenizer
from moejax.text.tokenizer import Tokenizer
from tests.tokenizer_models import byte_level, loaded, sentencepiece

KINDS = {
    "byte-level": loaded(byte_level()),
    "SentencePiece": loaded(sentencepiece()),
    "SentencePiece with Metaspace": loaded(sentencepiece(metaspace=True)),
}
TEXTS = [
    "the import statement",
    " a list",
    "é € 😀 日本 naïve café",
    "  ",
    "\u200b\n\t",
    "\U0001f469\u200d\U0001f680 €5",
]


def places_of(
    tokenizer: Tokenizer, ids: list[int], prompt: list[int], *, skips: bool = True
) -> tuple[list[bytes], str]:
    """The bytes of each token, and the text of all."""
    texts = TokenTexts(tokenizer, prompt, skip_special_tokens=skips)
    stream = Detokenizer(tokenizer, prompt, skip_special_tokens=skips)
    text = "".join(map(stream.push, ids)) + stream.flush()
    places = [texts.push(token) for token in ids]
    assert [place.start for place in places] == sorted(place.start for place in places)
    assert all(place.end == after.start for place, after in zip(places, places[1:], strict=False))
    return [place.data for place in places], text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prompt", ["", "the"])
def test_bytes_of_all_tokens_are_those_of_the_text(kind: str, text: str, prompt: str) -> None:
    tokenizer = KINDS[kind]
    front, ids = tokenizer.encode(prompt), tokenizer.encode(text)
    data, shown = places_of(tokenizer, ids, front)
    assert b"".join(data) == shown.encode()
    assert "\ufffd" not in shown


@given(ids=st.lists(st.integers(0, 299), max_size=30))
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_are_no_text_stay_what_they_are(kind: str, ids: list[int]) -> None:
    tokenizer = KINDS[kind]
    ids = [token for token in ids if token < tokenizer.vocab_size]
    data, shown = places_of(tokenizer, ids, [])
    if kind == "byte-level":
        assert b"".join(data).decode(errors="replace") == shown
    # One token of the vocabulary is U+FFFD itself.
    assert b"".join(data).decode(errors="ignore").replace("\ufffd", "") == shown.replace("\ufffd", "")


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_bytes_where_they_are_shown(kind: str) -> None:
    tokenizer = KINDS[kind]
    assert tokenizer.eos_id is not None
    ids = [*tokenizer.encode("a"), tokenizer.eos_id]
    for skips in (True, False):
        data, shown = places_of(tokenizer, ids, [], skips=skips)
        assert b"".join(data) == shown.encode()
        assert data[-1] == (b"" if skips else b"</s>")


def test_a_place_is_cut_where_the_text_ends() -> None:
    tokenizer = KINDS["byte-level"]
    texts = TokenTexts(tokenizer, [], skip_special_tokens=True)
    places = [texts.push(token) for token in tokenizer.encode("é the")]
    assert b"".join(place.cut(100) for place in places) == "é the".encode()
    assert b"".join(place.cut(3) for place in places) == "é t".encode()
    assert b"".join(place.cut(0) for place in places) == b""


def test_names_tell_all_candidates_apart() -> None:
    tokenizer = KINDS["SentencePiece"]
    texts = TokenTexts(tokenizer, [], skip_special_tokens=True)
    pieces = ("<0xE2>", "<0x82>", "a", "<0x61>", "<unk>", "\ufffd")
    ids: list[int] = [tokenizer.ids[piece] for piece in pieces]
    entry = {
        token: Logprob(logprob=-1.0, rank=rank, decoded_token=tokenizer.token_text(token))
        for rank, token in enumerate(ids, start=1)
    }
    names = texts.names(entry)
    assert list(names.values()) == ["bytes:\\xe2", "bytes:\\x82", "a", f"token_id:{ids[3]}", "<unk>", "\ufffd"]
